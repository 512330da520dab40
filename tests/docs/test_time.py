"""docs/time.md: the prices that it tells are those that are charged."""

from __future__ import annotations

import re
from pathlib import Path

from xenemu.hv.prices import EMULATION_NS, PRICES_NS, WORK_NS, YIELD_NS, Exit

PAGE = (Path(__file__).parents[2] / "docs/time.md").read_text()


def numbers(beginning: str) -> list[int]:
    """The prices in the row that begins so."""
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {beginning}")]
    return [int(number) for number in re.findall(r"(\d+) ns", row)]


def test_the_table_is_true() -> None:
    price = PRICES_NS
    assert numbers("a hypercall") == [price[e] for e in (Exit.SYSCALL, Exit.SOFT_INT, Exit.VMCALL)]
    assert numbers("a system call") == [price[Exit.SYSCALL]] == [price[Exit.SYSENTER]]
    assert numbers("an exception") == [price[e] for e in (Exit.EXCEPTION, Exit.DELIVERY)]
    assert price[Exit.UNDEFINED] == price[Exit.EXCEPTION]
    assert numbers("an instruction that Xen does") == [EMULATION_NS]
    assert numbers("CPUID") == [price[Exit.CPUID]] * 2
    emulated = price[Exit.EXCEPTION] + EMULATION_NS
    assert numbers("RDMSR") == [emulated, price[Exit.RDMSR]] == [emulated, price[Exit.WRMSR]]
    assert numbers("IN, OUT") == [price[Exit.IN]] * 2 == [price[Exit.OUT]] * 2
    assert numbers("an access") == [price[Exit.LOAD]] == [price[Exit.STORE]]
    assert numbers("PAUSE") == [price[Exit.PAUSE]] * 2
    assert numbers("SCHEDOP_yield") == [YIELD_NS] * 2
    assert numbers("a unit") == [WORK_NS] * 2


def test_every_exit_has_a_price() -> None:
    assert set(PRICES_NS) == set(Exit)
