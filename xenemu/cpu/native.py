"""The engine for guests that run natively: ring 0, their own tables, a physical address space.

Guest frames are machine frames where the p2m says so; the others lead to a page beyond RAM that
reads as ones, or to the local APIC.
"""

from __future__ import annotations

import ctypes
from typing import Any

from xenemu.cpu import shim
from xenemu.cpu.engine import Engine
from xenemu.errors import EngineError, NotModelled
from xenemu.hv.cpu import Delivered, Event, Msr, NativeExitHandler
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE

APIC_GFN = 0xFEE00
ONES_OFFSET = 2 * PAGE_SIZE  # behind the page of holes and the APIC's
READ_EXECUTE = 5
BEYOND_RAM = 1 << 40  # bytes of address space that answer with ones
OLD_EXCEPTION = 5496
DOUBLE_FAULT = 8
NO_VECTOR = -1
CR0_ENTRY = 0x11  # ET PE


class NativeEngine(Engine):
    """Implements `xenemu.hv.cpu.NativeCpu`. `native_handler` must be set before `run`."""

    native_handler: NativeExitHandler

    def __init__(self, memory: Memory, p2m: P2m, ports: frozenset[int]) -> None:
        super().__init__(memory)
        state, top = self._state, memory.nr_frames << PAGE_SHIFT
        self._p2m = p2m
        state.hole, state.apic, state.ones = top, top + PAGE_SIZE, top + ONES_OFFSET
        self._ones = ctypes.create_string_buffer(b"\xff" * PAGE_SIZE, PAGE_SIZE)
        self._map_beyond_ram(top)
        self._watched = bytearray(0x10000)
        for port in ports:
            self._watched[port] = 1
        state.ports = ctypes.addressof(ctypes.c_char.from_buffer(self._watched))
        state.populated = ctypes.addressof(ctypes.c_char.from_buffer(p2m.populated))
        self._old_exception = ctypes.c_int32.from_address(state.env + OLD_EXCEPTION)
        self._upcall_memory = ctypes.addressof(ctypes.c_char.from_buffer(memory.mapping))
        self.leave_long_mode()
        self._cr[0] = CR0_ENTRY
        self._sync_p2m()
        state.native = 1

    def _map_beyond_ram(self, top: int) -> None:
        """The page that answers for holes, the local APIC's, one of ones to fetch, and holes."""
        for start, end in ((top, top + ONES_OFFSET), (top + ONES_OFFSET + PAGE_SIZE, BEYOND_RAM)):
            error = self._shim.map_beyond_ram(start, end)
            if error:
                raise EngineError(f"unicorn refused a mapping beyond RAM: error {error}")
        ones = ctypes.addressof(self._ones)
        self._uc.mem_map_ptr(top + ONES_OFFSET, PAGE_SIZE, READ_EXECUTE, ones)

    def attach(self, handler: Any) -> None:
        """Set who handles the exits: a `NativeExitHandler`."""
        self.native_handler = handler

    # ---- the physical address space ----

    def _sync_p2m(self) -> None:
        """Tell the shim which guest frames lie elsewhere."""
        state, p2m = self._state, self._p2m
        places = [(APIC_GFN, state.apic)]
        places += [(gfn, mfn << PAGE_SHIFT) for gfn, mfn in sorted(p2m.elsewhere.items())]
        if len(places) > shim.MAX_OVERRIDES:
            raise NotModelled(f"{len(places)} frames of the guest's are not where RAM is")
        for n, (gfn, maddr) in enumerate(places):
            state.override_gfn[n], state.override_maddr[n] = gfn, maddr
        state.overrides = len(places)
        p2m.changed = False
        self.flush_tlb()

    # ---- entering and leaving the hypervisor ----

    def _dispatch(self, kind: int) -> None:
        state, handler = self._state, self.native_handler
        if kind == shim.EXIT_VMCALL:
            handler.vmcall()
        elif kind == shim.EXIT_RDMSR:
            answer = handler.read_msr(self.regs[1] & 0xFFFFFFFF)
            if isinstance(answer, Msr):
                state.answer = _ANSWERS[answer]
            else:
                state.value = answer
        elif kind == shim.EXIT_WRMSR:
            refused = handler.write_msr(self.regs[1] & 0xFFFFFFFF, state.value)
            if refused:
                state.answer = _ANSWERS[refused]
        elif kind == shim.EXIT_READ_CR8:
            state.value = handler.read_cr8()
        elif kind == shim.EXIT_WRITE_CR8:
            handler.write_cr8(state.value)
        elif kind == shim.EXIT_IN:
            state.value = handler.read_port(state.port, state.size)
        elif kind == shim.EXIT_OUT:
            handler.write_port(state.port, state.size, state.value)
        elif kind == shim.EXIT_LOAD:
            state.value = handler.read_apic(state.port, state.size)
        elif kind == shim.EXIT_STORE:
            handler.write_apic(state.port, state.size, state.value)
        elif not handler.cpuid():
            state.answer = shim.REFUSED
        if self._p2m.changed:
            self._sync_p2m()

    def resume(self) -> None:
        """Run the guest on to the deadline that is set, `stop`, HLT or a triple fault."""
        if self._p2m.changed:
            self._sync_p2m()
        self._halted.value = 0
        super().resume()

    @property
    def slice_over(self) -> bool:
        """Whether the guest has reached its deadline, or what stopped it was not the debugger."""
        return super().slice_over or self.halted or self.triple_fault

    # ---- NativeCpu ----

    @property
    def halted(self) -> bool:
        return bool(self._halted.value)

    @property
    def triple_fault(self) -> bool:
        return self._old_exception.value == DOUBLE_FAULT

    @property
    def delivered(self) -> Delivered:
        event = Event(self._state.delivered_kind)
        return Delivered(event, 0 if event is Event.INTERRUPT else self._state.delivered_vector)

    @property
    def apic_vector(self) -> int | None:
        vector = self._state.apic_vector
        return None if vector == NO_VECTOR else vector

    @apic_vector.setter
    def apic_vector(self, value: int | None) -> None:
        self._state.apic_vector = NO_VECTOR if value is None else value
        if value is not None:
            self.request_interrupt()

    @property
    def nmi_pending(self) -> bool:
        return bool(self._interrupt_request.value & shim.INTERRUPT_NMI)

    def take_accepted(self) -> int | None:
        """The interrupt of the local APIC that was taken since the last call."""
        vector = self._state.apic_accepted
        self._state.apic_accepted = NO_VECTOR
        return None if vector == NO_VECTOR else vector

    def request_interrupt(self) -> None:
        """Take an interrupt as soon as the guest allows."""
        self._shim.request_interrupt(shim.INTERRUPT_VIRQ)

    def request_nmi(self) -> None:
        """Take an NMI as soon as none is being handled."""
        self._shim.request_interrupt(shim.INTERRUPT_NMI)

    def set_upcall(self, info_maddr: int, vector: int | None) -> None:
        """Raise `vector` while the byte at `info_maddr` is set and interrupts are allowed."""
        self._state.upcall_pending = self._upcall_memory + info_maddr
        self._state.callback_vector = NO_VECTOR if vector is None else vector
        self.request_interrupt()


_ANSWERS = {Msr.REFUSED: shim.REFUSED, Msr.NATIVE: shim.NATIVE}
