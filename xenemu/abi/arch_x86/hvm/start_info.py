"""What a PVH guest finds at the address in EBX.

Header: public/arch-x86/hvm/start_info.h
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.layout import U32, U64, Struct

XEN_HVM_START_MAGIC_VALUE: Final = 0x336EC578  # "xEn3", bit 7 of the E set
XEN_HVM_START_INFO_V1: Final = 1  # the version with a memory map


class hvm_start_info(Struct, size=(56, 56)):
    """The head; addresses are guest-physical, 0 if there is nothing."""

    magic: U32
    version: U32
    flags: U32
    nr_modules: U32
    modlist_paddr: U64
    cmdline_paddr: U64
    rsdp_paddr: U64
    memmap_paddr: U64
    memmap_entries: U32
    reserved: U32


class hvm_modlist_entry(Struct, size=(32, 32)):
    """A module: the initial ramdisk is the first."""

    paddr: U64
    size: U64
    cmdline_paddr: U64
    reserved: U64


class hvm_memmap_table_entry(Struct, size=(24, 24)):
    """A range of memory; types are those of the e820 map."""

    addr: U64
    size: U64
    type: U32
    reserved: U32
