"""pv/hypercall_page: the stubs."""

from __future__ import annotations

import capstone
import pytest

from xenemu.abi.xen import Nr
from xenemu.pv.hypercall_page import STUB_SIZE, hypercall_page


def stub(number: int) -> list[str]:
    """The disassembly of a stub, up to its padding."""
    code = hypercall_page(8)[number * STUB_SIZE : (number + 1) * STUB_SIZE]
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    lines = [f"{i.mnemonic} {i.op_str}".strip() for i in disassembler.disasm(code, 0)]
    return lines[: lines.index("int3")]


@pytest.mark.parametrize("number", [0, Nr.mmu_update, 63, 127])
def test_a_stub_saves_what_syscall_loses(number: int) -> None:
    assert stub(number) == [
        "push rcx",
        "push r11",
        f"mov eax, {number if number < 10 else hex(number)}",
        "syscall",
        "pop r11",
        "pop rcx",
        "ret",
    ]


def test_iret_is_jumped_to_and_builds_its_frame() -> None:
    assert stub(Nr.iret) == ["push rcx", "push r11", "push rax", "mov eax, 0x17", "syscall"]


def test_a_page_is_full() -> None:
    assert len(hypercall_page(8)) == 4096
