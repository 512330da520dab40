"""What a PVH guest is told at its start: hvm_start_info and all that it points to, in one piece.

Header: public/arch-x86/hvm/start_info.h
In Xen: tools/libs/guest/xg_dom_x86.c (bootlate_hvm)
"""

from __future__ import annotations

from collections.abc import Sequence

from xenemu.abi.arch_x86.hvm.start_info import (
    XEN_HVM_START_INFO_V1,
    XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry,
    hvm_modlist_entry,
    hvm_start_info,
)
from xenemu.records import dataclass

E820 = Sequence[tuple[int, int, int]]  # address, size, type
WIDTH = 8  # the structs are the same in both


@dataclass(frozen=True)
class LoadedModule:
    """A module in the guest's memory; `cmdline` is None if it has none."""

    paddr: int
    size: int
    cmdline: bytes | None


def encode(
    paddr: int, cmdline: bytes, modules: Sequence[LoadedModule], rsdp: int, e820: E820
) -> bytes:
    """Encode everything for the address `paddr`. Its size does not depend on any address."""
    data = bytearray(hvm_start_info.sizeof(WIDTH))

    def put(piece: bytes) -> int:
        """Append, and align to 8 bytes; the address."""
        where = paddr + len(data)
        data.extend(piece + bytes(-len(piece) % 8))
        return where

    cmdline_paddr = put(cmdline + b"\0")
    cmdlines = [0 if one.cmdline is None else put(one.cmdline + b"\0") for one in modules]
    entries = [
        hvm_modlist_entry(one.paddr, one.size, string, 0)
        for one, string in zip(modules, cmdlines, strict=True)
    ]
    modlist_paddr = put(b"".join(entry.pack(WIDTH) for entry in entries)) if entries else 0
    ranges = [hvm_memmap_table_entry(*one, 0).pack(WIDTH) for one in e820]
    head = hvm_start_info(
        magic=XEN_HVM_START_MAGIC_VALUE,
        version=XEN_HVM_START_INFO_V1,
        flags=0,
        nr_modules=len(entries),
        modlist_paddr=modlist_paddr,
        cmdline_paddr=cmdline_paddr,
        rsdp_paddr=rsdp,
        memmap_paddr=put(b"".join(ranges)),
        memmap_entries=len(ranges),
        reserved=0,
    )
    data[: hvm_start_info.sizeof(WIDTH)] = head.pack(WIDTH)
    return bytes(data)
