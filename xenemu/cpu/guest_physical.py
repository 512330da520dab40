"""The physical address space of a guest that runs natively.

The p2m says which machine frame a guest frame is. The other guest frames lead to the local APIC, or
to a page beyond RAM that reads as ones.
"""

from __future__ import annotations

import ctypes
from typing import Any

from xenemu.cpu.shim import Shim
from xenemu.errors import EngineError
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE

ONES_OFFSET = 2 * PAGE_SIZE  # after the page of holes and the APIC's
READ_EXECUTE = 5
BEYOND_RAM = 1 << 40  # bytes of address space that answer with ones
NR_PORTS = 0x10000


class GuestPhysical:
    """Tells the shim where guest frames lie, and which ports the hypervisor wants to know of."""

    def __init__(self, loaded: Shim, memory: Memory, p2m: P2m, ports: frozenset[int]) -> None:
        self._shim, self._physical = loaded, loaded.physical
        physical, top = loaded.physical, memory.nr_frames << PAGE_SHIFT
        physical.hole, physical.apic, physical.ones = top, top + PAGE_SIZE, top + ONES_OFFSET
        self._ones = ctypes.create_string_buffer(b"\xff" * PAGE_SIZE, PAGE_SIZE)
        self._watched = bytearray(NR_PORTS)
        for port in ports:
            self._watched[port] = 1
        loaded.vcpu.ports = ctypes.addressof(ctypes.c_char.from_buffer(self._watched))
        physical.p2m = ctypes.addressof(ctypes.c_uint32.from_buffer(p2m.table))
        physical.gfns = len(p2m.table)

    def show_ports(self) -> None:
        """Let the hypervisor know of all ports."""
        self._watched[:] = b"\x01" * NR_PORTS

    def map_beyond_ram(self, uc: Any) -> None:
        """The page that answers for holes, the local APIC's, one of ones to fetch, and holes."""
        top, ones = self._physical.hole, self._physical.ones
        for start, end in ((top, ones), (ones + PAGE_SIZE, BEYOND_RAM)):
            error = self._shim.map_beyond_ram(start, end)
            if error:
                raise EngineError(f"unicorn refused a mapping beyond RAM: error {error}")
        uc.mem_map_ptr(ones, PAGE_SIZE, READ_EXECUTE, ctypes.addressof(self._ones))
