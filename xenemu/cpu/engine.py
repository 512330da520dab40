"""The engine: one software CPU over the machine's memory, with exact virtual time.

One instruction is one nanosecond, and an exit has its price (hv/prices.py); idle time is skipped,
not spent. The guest runs until a deadline in that time, or until the hypervisor, called through an
`ExitHandler`, stops it, or until the host does (`look`).
No hook sees blocks or memory accesses: see cpu/native/count.c for what is counted where.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

from xenemu.abi.arch_x86.cpufeatureset import (
    WORD_1C,
    WORD_1D,
    WORD_7B0,
    WORD_7C0,
    WORD_E1C,
    WORD_E1D,
    word_of,
)
from xenemu.cpu import self_check, shim
from xenemu.cpu.context import NOWHERE, Context, Interrupts
from xenemu.cpu.exits import native_exits, pv_exits
from xenemu.cpu.guest_physical import GuestPhysical
from xenemu.cpu.registers import Registers
from xenemu.errors import EngineError, EngineGaveUp
from xenemu.hv.cpu import Delivered, Event, ExitHandler, Lane, NativeExitHandler
from xenemu.hv.cpu_policy import HOST_FEATURES
from xenemu.hv.frame_table import LEVELS
from xenemu.hv.memory import Memory
from xenemu.hv.p2m import P2m
from xenemu.hv.prices import Exit
from xenemu.records import dataclass
from xenemu.x86 import flags
from xenemu.x86.paging import PAGE_SIZE

DEFAULT_CACHE = 256 << 20
MIN_CACHE, MAX_CACHE = 1 << 20, 1 << 30  # what Unicorn takes
CPU_MODEL = 22  # Skylake-Server: the widest instruction set; CPUID is ours

# By their index in CPUX86State.features, the words of a featureset. The engine takes instructions
# that their bits do not name for undefined.
FEATURE_WORDS = {0: WORD_1D, 1: WORD_1C, 2: WORD_7B0, 3: WORD_7C0, 6: WORD_E1D, 7: WORD_E1C}
NR_FEATURE_WORDS = 8

DOUBLE_FAULT = 8
VECTOR = 0xFF
DEBUG_REGISTERS = (0,) * 6 + (0xFFFF0FF0, 0x400)  # after a reset

MAX_RUN_NS = 1 << 62
PLACES = ("words", "info", "log", "bells")  # of a Lane: what the shim has as pointers
LANE_NUMBERS = tuple(field.name for field in fields(Lane) if field.name not in PLACES)


@dataclass(frozen=True)
class EngineState:
    """What `Engine.keep` found: registers, and what the shim has of the guest's own.

    Plain data: addresses of this process are not in it.
    """

    registers: Context
    # Of the clock, the vcpu and the counters (cpu/shared.def), the fields that are no addresses.
    subjects: tuple[dict[str, int | bytes], ...]
    by_iret: int
    stop: int
    let_fault: int


class Engine(Registers):
    """Implements `xenemu.hv.cpu.Cpu` for the vcpu that is loaded in it.

    With a p2m, for a guest in ring 0, with its own tables and a physical address space of its own:
    then `NativeCpu`, too. `ports` are those that this guest's handler wants to know of.

    `attach` must be called before `run`. An exception that the handler lets out stops the guest
    and is raised by `run`.

    `look` is called now and then while the guest runs, by the host's clock, and stops the guest
    with `stop` if somebody wants that. It must not depend on the guest's registers, which are not
    all in place then, nor change anything of the guest's.
    """

    # Bytes of translated code that an engine keeps. When there are more, it drops all of them.
    translation_cache: ClassVar[int] = DEFAULT_CACHE

    handler: ExitHandler | NativeExitHandler
    look: Callable[[], None]

    def __init__(
        self, memory: Memory, p2m: P2m | None = None, ports: frozenset[int] = frozenset()
    ) -> None:
        self._memory = memory
        loaded = shim.load()
        self._clock, self._counters = loaded.clock, loaded.counters
        # Its first three fields: they are read all the time, and this takes half as long.
        self._time = memoryview(self._clock).cast("B")[:24].cast("q")
        unicorn = loaded.unicorn
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.ctl_set_cpu_model(CPU_MODEL)
        uc.ctl_set_tcg_buffer_size(self.translation_cache)
        self._ram = ctypes.addressof(ctypes.c_char.from_buffer(memory.mapping))
        uc.mem_map_ptr(0, memory.nr_frames << 12, unicorn.UC_PROT_ALL, self._ram)
        uc.ctl_exits_enabled(True)
        handle, at = uc._uch.value, loaded.constants
        ctypes.c_uint8.from_address(handle + at.UC_NO_EXIT_REQUEST).value = 1
        loaded.attach(handle)
        super().__init__(loaded, uc, self._ram)
        env = loaded.env()
        self._flush_all = at.FLUSH_OWN | at.FLUSH_KEPT
        self._vcpu.native = 0  # or the last engine's guest would be asked about MSRs
        self_check.check(loaded, uc)
        features = (ctypes.c_uint64 * NR_FEATURE_WORDS).from_address(env + at.ENV_FEATURES)
        for index, word in FEATURE_WORDS.items():
            features[index] &= word_of(HOST_FEATURES, word)

        self._written = bytearray(memory.nr_frames)
        physical, clock, counters = loaded.physical, self._clock, self._counters
        physical.code = ctypes.addressof(ctypes.c_char.from_buffer(memory.code))
        physical.written = ctypes.addressof(ctypes.c_char.from_buffer(self._written))
        physical.frames, physical.ram = memory.nr_frames, self._ram
        physical.info = ctypes.addressof(ctypes.c_char.from_buffer(memory.page_info))
        physical.table_types = sum(1 << used_as for used_as in LEVELS) if p2m is None else 0
        physical.p2m = physical.gfns = 0
        self_check.check_tlb(loaded)
        self._lane = loaded.lane
        self._lane.open = self._lane.taken = self._lane.rung = 0
        self._lane.bells = None
        self.fast = True  # whether the lane may be opened
        self._adjusted = (ctypes.c_uint8 * PAGE_SIZE)()
        clock.left = clock.end = clock.skipped_ns = clock.looked_ns = clock.pauses = 0
        counters.exits = counters.flushes = counters.fills = 0
        counters.blocks_translated = counters.code_frames = counters.exposed = 0
        loaded.coverage.room = loaded.notes.room = 0  # or they would go where another engine's were
        self._vcpu.ports = self._vcpu.undefined_bits = 0
        self._vcpu.upcall_pending = None  # which is in memory of the last engine's guest
        self._vcpu.delivered_kind = self._vcpu.delivered_vector = 0
        self.seed_random(0)
        self.set_prices({})
        self.look = lambda: None
        self.block_log: object = None  # a BlockLog: the shim writes into its buffer
        self.lane_notes: object = None  # a LaneNotes: the same
        self.put_off = 0  # nanoseconds of the slice that a step leaves for later
        self.ended = False  # the interrupt that `take_accepted` returned
        self._error: BaseException | None = None
        self._enter = ctypes.PYFUNCTYPE(None)(self._on_exit)
        self._exit.enter = ctypes.cast(self._enter, ctypes.c_void_p).value
        self._look = ctypes.PYFUNCTYPE(None)(self._on_look)
        self._exit.look = ctypes.cast(self._look, ctypes.c_void_p).value
        self._add_hook(unicorn.UC_HOOK_INTR, loaded.hook_interrupt)
        self._add_hook(unicorn.UC_HOOK_INSN_INVALID, loaded.hook_undefined)
        self._p2m = p2m
        if p2m is not None:
            self._guest_physical = GuestPhysical(loaded, memory, p2m, ports)
            self._guest_physical.map_beyond_ram(uc)
            self.enter_pvh_mode()
            self._vcpu.native = 1

    def _add_hook(self, kind: int, function: int) -> None:
        handle = ctypes.c_size_t()
        error = self._shim.uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            ctypes.c_int(kind),
            ctypes.c_void_p(function),
            ctypes.c_void_p(0),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        if error:
            raise EngineError(f"unicorn refused a hook of kind {kind}: error {error}")

    def attach(self, handler: Any) -> None:
        """Set who handles the exits: an `ExitHandler`, or with a p2m a `NativeExitHandler`."""
        self.handler = handler
        if self._p2m is not None:
            self._exits = native_exits(self._shim, handler, lambda: self.regs[1] & 0xFFFFFFFF)
        else:
            self._exits = pv_exits(self._shim, handler)

    # ---- entering and leaving the hypervisor ----

    def _on_exit(self) -> None:
        try:
            if self._lane.rung:
                self._hear()
            self._exits[self._exit.kind]()
            if self._memory.stale_code:
                self._drop_stale_code()
            if self._p2m is not None and self._p2m.changed:
                self._forget_places()
        except BaseException as error:
            self.fail(error)

    def _hear(self) -> None:
        """Tell of the bells that were rung since the hypervisor was last called."""
        lane = self._lane
        rung, lane.rung = lane.rung, 0
        bells = [number for number in range(rung.bit_length()) if rung >> number & 1]
        if bells[1:]:
            bells.sort(key=lane.rung_ns.__getitem__)
        for number in bells:
            self.handler.rung(number, lane.rung_ns[number])

    def _on_look(self) -> None:
        try:
            self.look()
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop the guest because of an error in a callback, which must not raise: `run` does."""
        self._error = error
        self.stop()

    def _drop_stale_code(self) -> None:
        for mfn in sorted(self._memory.stale_code):
            self._shim.invalidate(mfn)
        self._memory.stale_code.clear()

    def _forget_places(self) -> None:
        """The TLB has addresses of machine memory, where the p2m had it."""
        assert self._p2m is not None
        self._p2m.changed = False
        self.flush_tlb()

    def run(self, deadline_ns: int) -> None:
        """Run the guest until virtual time `deadline_ns`, or until `stop` was called."""
        self.set_deadline(deadline_ns)
        self.resume()

    def set_deadline(self, deadline_ns: int) -> None:
        """Make `deadline_ns` the end of the slice that `resume` runs."""
        clock = self._clock
        end = max(min(deadline_ns, MAX_RUN_NS) - clock.skipped_ns, 0)
        clock.left += end - clock.end
        clock.end = end

    @property
    def deadline_ns(self) -> int:
        """Where the slice ends that is under way: the calls of the guest may have cut it."""
        return int(self._clock.end + self._clock.skipped_ns + self.put_off)

    def resume(self) -> None:
        """Run the guest on to the deadline that is set, or until `stop` was called.

        A guest in ring 0 also leaves by HLT, and by a triple fault.
        """
        if self._p2m is not None:
            if self._p2m.changed:
                self._forget_places()
            self._halted.value = 0
        if self._clock.left <= 0:
            return
        if self._memory.stale_code:
            self._drop_stale_code()
        status = self._shim.run(self._rip.value)
        if self._lane.rung:
            self._hear()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._counters.uncounted:
            raise EngineError("this build of unicorn begins its blocks in another way")
        if self._counters.exposed:
            mfn = self._counters.exposed - 1
            raise EngineError(
                f"the guest could write a page table: mfn {mfn:#x} (a bug of xenemu's)"
            )
        if status == self._constants.GAVE_UP:
            words = self._shim.last_words().decode(errors="replace")
            raise EngineGaveUp(f"the CPU engine gave up at {self.rip:#x}: {words}")
        if status and not self._exit.stop:
            raise EngineError(f"unicorn stopped with error {status} at {self.rip:#x}")

    def limit(self, deadline_ns: int) -> None:
        """Leave `run` no later than at virtual time `deadline_ns`."""
        clock = self._clock
        end = deadline_ns - clock.skipped_ns
        if end < clock.end:
            clock.left -= clock.end - end
            clock.end = end
        self.put_off = max(0, min(self.put_off, end - clock.end))

    def show_ports(self) -> None:
        """Let the handler know of accesses to all ports, also to those that nothing answers."""
        if self._p2m is not None:
            self._guest_physical.show_ports()

    def leave_by_iret(self) -> None:
        """See `Cpu.leave_by_iret`."""
        self._exit.by_iret = 1

    def set_prices(self, prices: Mapping[Exit, int]) -> None:
        """Let each exit take so many nanoseconds of the guest's time; others take none."""
        for exit_ in Exit:
            kind = getattr(self._constants, f"EXIT_{exit_.name}")
            self._clock.prices[kind] = prices.get(exit_, 0)

    def spend(self, ns: int) -> None:
        """Let time pass for the hypervisor's work; only while the guest is in an exit."""
        clock = self._clock
        clock.left -= ns
        clock.end -= ns
        clock.skipped_ns += ns

    def leave_after_pauses(self, count: int) -> None:
        """See `Cpu.leave_after_pauses`."""
        self._clock.pauses = count

    def join_lane(self, lane: Lane) -> None:
        """See `Cpu.join_lane`."""
        shared = self._shim.lane
        shared.open = 0
        for name in LANE_NUMBERS:
            setattr(shared, name, getattr(lane, name))
        shared.levels = LEVELS[lane.root_type]
        shared.vcpu = ctypes.addressof(ctypes.c_char.from_buffer(lane.words))
        shared.log = ctypes.addressof(ctypes.c_char.from_buffer(lane.log))
        shared.bells = ctypes.addressof(ctypes.c_char.from_buffer(lane.bells))
        shared.info = self._ram + lane.info
        self._joined: object = lane  # whose buffers C has

    def join_native_lane(self, vcpu_id: int, log: bytearray, bells: bytearray) -> None:
        """See `NativeCpu.join_native_lane`."""
        shared = self._shim.lane
        shared.open, shared.vcpu_id = 0, vcpu_id
        shared.log = ctypes.addressof(ctypes.c_char.from_buffer(log))
        shared.bells = ctypes.addressof(ctypes.c_char.from_buffer(bells))
        self._joined = log, bells

    def open_lane(self, value: bool) -> None:
        """See `Cpu.open_lane`."""
        self._lane.open = value and self.fast

    def take_l1(self, mfn: int) -> bytes | None:
        """See `Cpu.take_l1`."""
        taken = self._shim.take_l1(mfn, self._adjusted) if self.fast else self._constants.L1_LEFT
        if taken == self._constants.L1_LEFT:
            return None
        return bytes(self._adjusted) if taken == self._constants.L1_ADJUSTED else b""

    def drop_l1(self, mfn: int) -> bool:
        """See `Cpu.drop_l1`."""
        return self.fast and self._shim.drop_l1(mfn) != self._constants.L1_LEFT

    def stop(self) -> None:
        """Leave `run` before the next instruction of the guest."""
        self._exit.stop |= self._constants.STOP_HYPERVISOR

    @property
    def slice_over(self) -> bool:
        """Whether the guest has reached its deadline, or what stopped it was not the debugger."""
        if self._clock.left <= 0 or self._exit.stop & self._constants.STOP_HYPERVISOR:
            return True
        return self._p2m is not None and (self.halted or self.triple_fault)

    def skip_to(self, when_ns: int) -> None:
        """Let idle time pass: move virtual time forward to `when_ns`."""
        self._clock.skipped_ns += max(0, when_ns - self.now_ns)

    def begin_at(self, now_ns: int, instructions: int) -> None:
        """Count on from the time and the instructions of another engine, before this one runs."""
        clock = self._clock
        clock.left, clock.end, clock.skipped_ns = 0, instructions, now_ns - instructions

    @property
    def now_ns(self) -> int:
        """Virtual time: instructions executed, prices paid, and idle time skipped."""
        left, end, skipped_ns = self._time
        return end - left + skipped_ns

    @property
    def instructions(self) -> int:
        """Instructions executed since start."""
        return int(self._clock.end - self._clock.left)

    def statistics(self) -> dict[str, int]:
        """Counters of the engine's own work."""
        names = ("exits", "flushes", "fills", "blocks_translated", "code_frames")
        return {name: getattr(self._counters, name) for name in names}

    def audit(self) -> list[str]:
        """What is wrong in what the CPU has of the guest, a sentence each; only between runs."""
        exposed = self._shim.tlbs_expose_table()
        return ["a TLB lets the guest write to a page table"] if exposed else []

    # ---- snapshots ----

    def keep(self) -> EngineState:
        """Everything of the guest's that the engine has, for `put_back`; only between runs."""
        registers = self.store()
        subjects = tuple(map(_plain_fields, self._guests_own()))
        loaded = self._shim
        return EngineState(
            registers, subjects, loaded.exit.by_iret, loaded.exit.stop, loaded.debug.let_fault
        )

    def put_back(self, kept: EngineState) -> None:
        """Go on from what this engine has kept."""
        self.open_lane(False)
        self.load(kept.registers)
        self.flush_tlb()
        for place, values in zip(self._guests_own(), kept.subjects, strict=True):
            for name, value in values.items():
                kind = type(getattr(place, name))
                setattr(place, name, value if kind is int else kind.from_buffer_copy(value))
        loaded = self._shim
        loaded.exit.by_iret, loaded.exit.stop = kept.by_iret, kept.stop
        loaded.debug.let_fault = kept.let_fault

    def _guests_own(self) -> tuple[ctypes.Structure, ...]:
        return (self._shim.clock, self._shim.vcpu, self._shim.counters)

    # ---- Cpu ----

    def seed_random(self, seed: int) -> None:
        """Begin the sequence that RDRAND and RDSEED read; `seed` has 64 bits."""
        self._vcpu.random = seed

    def came_from(self) -> int:
        """See `Cpu.came_from`."""
        return int(self._shim.came_from())

    def translate(self, vaddr: int, writing: bool) -> int | None:
        """See `Cpu.translate`."""
        maddr = int(self._shim.translate(vaddr, writing))
        return None if maddr == NOWHERE else maddr

    def flush_tlb(self) -> None:
        """Forget all translations, of other vcpus too, before the guest runs again."""
        self._exit.flush = self._flush_all

    def flush_tlb_page(self, vaddr: int) -> None:
        """Forget the translations of one page, of other vcpus too, before the guest runs again."""
        self._shim.flush_page(vaddr)

    # ---- NativeCpu ----

    @property
    def halted(self) -> bool:
        return bool(self._halted.value)

    def begin(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        """See `NativeCpu.begin`."""
        fresh = replace(
            self.store(),
            cr0=cr0,
            cr2=0,
            cr3=cr3,
            cr4=cr4,
            efer=efer,
            general=(0,) * len(self.regs),
            rflags=flags.FIXED,
            cpl=0,
            debug=DEBUG_REGISTERS,
            interrupts=Interrupts(),
            undefined=None,
            delivered=(0, 0),
        )
        self.load(fresh)

    @property
    def triple_fault(self) -> bool:
        return self._old_exception.value == DOUBLE_FAULT

    @property
    def delivered(self) -> Delivered:
        event = Event(self._vcpu.delivered_kind)
        return Delivered(event, 0 if event is Event.INTERRUPT else self._vcpu.delivered_vector)

    @property
    def apic_vector(self) -> int | None:
        vector: int = self._vcpu.apic_vector
        return None if vector == self._constants.NO_VECTOR else vector & VECTOR

    @apic_vector.setter
    def apic_vector(self, value: int | None) -> None:
        self._vcpu.apic_vector = self._constants.NO_VECTOR if value is None else value
        if value is not None:
            self.request_interrupt()

    @property
    def nmi_pending(self) -> bool:
        return bool(self._interrupt_request.value & self._constants.INTERRUPT_NMI)

    def take_accepted(self) -> int | None:
        """The interrupt of the local APIC that was taken since the last call."""
        vector: int = self._vcpu.apic_accepted
        if vector == self._constants.NO_VECTOR:
            return None
        self._vcpu.apic_accepted = self._constants.NO_VECTOR
        self.ended = bool(vector & self._constants.APIC_DONE)
        return vector & VECTOR

    def may_end(self) -> None:
        """See `NativeCpu.may_end`."""
        if self._vcpu.apic_vector != self._constants.NO_VECTOR:
            self._vcpu.apic_vector |= self._constants.APIC_ALONE

    def request_interrupt(self) -> None:
        """Take an interrupt as soon as the guest allows."""
        self._shim.request_interrupt(self._constants.INTERRUPT_VIRQ)

    def request_nmi(self) -> None:
        """Take an NMI as soon as none is being handled."""
        self._shim.request_interrupt(self._constants.INTERRUPT_NMI)

    def set_upcall(self, info_maddr: int, vector: int | None) -> None:
        """Raise `vector` while the byte at `info_maddr` is set and interrupts are allowed."""
        self._vcpu.upcall_pending = self._ram + info_maddr
        self._vcpu.callback_vector = self._constants.NO_VECTOR if vector is None else vector
        self.request_interrupt()


def _plain_fields(subject: ctypes.Structure) -> dict[str, int | bytes]:
    """The fields that are no addresses; an array as its bytes."""
    found: dict[str, int | bytes] = {}
    for name, kind, *_ in subject._fields_:
        if kind is not ctypes.c_void_p:
            value = getattr(subject, name)
            found[name] = bytes(value) if isinstance(value, ctypes.Array) else value
    return found
