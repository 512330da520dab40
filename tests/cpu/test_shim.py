"""cpu/shim: what C and Python share has one declaration, and neither may misread it."""

from __future__ import annotations

import ctypes
import re

import pytest

from xenemu.cpu import self_check, shim
from xenemu.cpu.engine import Engine
from xenemu.errors import EngineError
from xenemu.hv import calls, page_info
from xenemu.hv.memory import Memory


def rows(*members: tuple[str, str, int, int], size: int) -> list[shim._Member]:
    table = [shim._Member(n.encode(), t.encode(), offset, count) for n, t, offset, count in members]
    return [*table, shim._Member(None, None, size, 0)]


def test_a_struct_is_made_of_its_table() -> None:
    table = rows(("a", "uint8_t", 0, 1), ("b", "uint32_t", 4, 3), ("c", "void *", 16, 1), size=24)
    made = shim.struct_of("it", table)
    assert ctypes.sizeof(made) == 24
    assert [getattr(made, name).offset for name in ("a", "b", "c")] == [0, 4, 16]
    assert [getattr(made, name).size for name in ("a", "b", "c")] == [1, 12, 8]


@pytest.mark.parametrize(
    "table",
    [
        rows(("a", "uint8_t", 0, 1), ("b", "uint32_t", 1, 1), size=8),  # packed
        rows(("a", "uint64_t", 0, 1), size=16),
        rows(("a", "uint64_t", 0, 1), ("b", "uint32_t", 8, 1), size=12),
    ],
)
def test_a_struct_that_ctypes_would_lay_out_otherwise_is_refused(table: list[shim._Member]) -> None:
    with pytest.raises(EngineError, match="the shim's struct it is laid out"):
        shim.struct_of("it", table)


OFFSETS = {
    "ENV_REGS": "RAX", "ENV_EIP": "RIP", "ENV_SEGS": "FS_BASE", "ENV_CR0": "CR0", "ENV_CR2": "CR2",
    "ENV_DR": "DR0", "ENV_XMM": "XMM0", "ENV_FPUC": "FPCW", "ENV_FPUS": "FPSW",
    "ENV_FPSTT": "FPSW", "ENV_MXCSR": "MXCSR", "ENV_STAR": "MSR 0xc0000081",
    "ENV_LSTAR": "MSR 0xc0000082", "ENV_CSTAR": "MSR 0xc0000083", "ENV_FMASK": "MSR 0xc0000084",
    "ENV_KERNEL_GS_BASE": "MSR 0xc0000102", "ENV_TSC_AUX": "MSR 0xc0000103",
    "ENV_SYSENTER_CS": "MSR 0x174", "ENV_SYSENTER_ESP": "MSR 0x175",
    "ENV_SYSENTER_EIP": "MSR 0x176", "ENV_PAT": "MSR 0x277", "SEG_LIMIT": "LDTR",
    "SEG_BASE": "FS_BASE",
}  # fmt: skip


def test_an_offset_that_is_wrong_is_found_and_nothing_changes(monkeypatch) -> None:
    engine = Engine(Memory(4))
    loaded = shim.load()
    env = ctypes.string_at(loaded.env(), 5400)
    self_check.check(loaded, engine._uc)
    for name, register in OFFSETS.items():
        with monkeypatch.context() as patch:
            patch.setattr(loaded.constants, name, getattr(loaded.constants, name) + 4)
            match = re.escape(f"keeps {register} elsewhere")
            with pytest.raises(EngineError, match=match):
                self_check.check(loaded, engine._uc)
    assert ctypes.string_at(loaded.env(), 5400) == env


def test_a_record_that_differs_is_refused() -> None:
    loaded = shim.load()
    kept = {
        "page_info": (page_info.places(), page_info.RECORD.size),
        "call_record": (calls.places(), calls.RECORD.size),
    }
    for name, (places, size) in kept.items():
        loaded._check_record(name, places, size)
        swapped = dict(zip(places, reversed(places.values()), strict=True))
        for wrong in ((swapped, size), (places, size + 8)):
            with pytest.raises(EngineError, match=f"struct {name} is not the model's"):
                loaded._check_record(name, *wrong)


def test_another_tlb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, loaded = Engine(Memory(4)), shim.load()
    self_check.check_tlb(loaded)  # it writes to that of the engine
    assert engine.instructions == 0
    monkeypatch.setattr(loaded, "fills_as_unicorn", lambda: False)
    with pytest.raises(EngineError, match="keeps the TLB elsewhere"):
        self_check.check_tlb(loaded)
