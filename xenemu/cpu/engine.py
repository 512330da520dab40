"""The engine: one software CPU over the machine's memory, with exact virtual time.

One instruction is one nanosecond, and an exit has its price (hv/prices.py); idle time is skipped,
not spent. The guest runs until a deadline in that time, or until the hypervisor, called through an
`ExitHandler`, stops it, or until the host does (`look`).
No hook sees blocks or memory accesses: see cpu/shim.c for what is counted where.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, MutableSequence
from typing import Any

from xenemu.abi.arch_x86.cpufeatureset import (
    WORD_1C,
    WORD_1D,
    WORD_7B0,
    WORD_7C0,
    WORD_E1C,
    WORD_E1D,
    word_of,
)
from xenemu.cpu import shim
from xenemu.errors import EngineError, EngineGaveUp
from xenemu.hv.cpu import ExitHandler, Seg, Segment, Undefined
from xenemu.hv.cpu_policy import HOST_FEATURES
from xenemu.hv.memory import Memory
from xenemu.hv.prices import Exit

# Offsets in CPUX86State and CPUState, Unicorn 2.1.4 on x86-64 Linux; `_self_check` verifies them.
ENV_EIP = 128
ENV_HFLAGS = 176
ENV_SEGS = 184
ENV_CR = 424
ENV_EFER = 592
ENV_TSC_AUX = 4896
ENV_DR = 5400
ENV_FEATURES = 5632
ENV_SAVED = 5568  # everything up to here is a vcpu's own
CPU_INTERRUPT_REQUEST = 28
CPU_HALTED = 33176
CPU_EXCEPTION_INDEX = 33184
UC_NO_EXIT_REQUEST = 2034

HF_CPL = 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_TS = 1 << 11
HF_CS64 = 1 << 15
ATTR_L = 1 << 21
ATTR_DB = 1 << 22
ATTRIBUTES = 0x00F0FF00

CR0_PV = 0x80050033  # PG AM WP NE ET MP PE
CR0_PE, CR0_PE_PG = 1, 0x80000001
CR0_TS = 1 << 3
CR4_TSD = 1 << 2
CR4_PAE = 1 << 5
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_FSGSBASE = 1 << 16
EFER_MSR, TSC_AUX_MSR = 0xC0000080, 0xC0000103
EFER_SCE_LME_LMA_NX = 0xD01
EFER_SCE_NX = 0x801
CPU_MODEL = 22  # Skylake-Server: the widest instruction set; CPUID is ours

# By their index in CPUX86State.features, the words of a featureset. The engine takes instructions
# that their bits do not name for undefined.
FEATURE_WORDS = {0: WORD_1D, 1: WORD_1C, 2: WORD_7B0, 3: WORD_7C0, 6: WORD_E1D, 7: WORD_E1C}
NR_FEATURE_WORDS = 8

MAX_RUN_NS = 1 << 62
BREAKPOINTS = 4  # DR0 to DR3

PRICED = {
    Exit.EXCEPTION: shim.EXIT_EXCEPTION,
    Exit.SOFT_INT: shim.EXIT_SOFT_INT,
    Exit.UNDEFINED: shim.EXIT_UNDEFINED,
    Exit.SYSCALL: shim.EXIT_SYSCALL,
    Exit.SYSENTER: shim.EXIT_SYSENTER,
    Exit.VMCALL: shim.EXIT_VMCALL,
    Exit.CPUID: shim.EXIT_CPUID,
    Exit.RDMSR: shim.EXIT_RDMSR,
    Exit.WRMSR: shim.EXIT_WRMSR,
    Exit.IN: shim.EXIT_IN,
    Exit.OUT: shim.EXIT_OUT,
    Exit.LOAD: shim.EXIT_LOAD,
    Exit.STORE: shim.EXIT_STORE,
    Exit.PAUSE: shim.PAUSE,
    Exit.DELIVERY: shim.DELIVERY,
}


class _Segment(ctypes.Structure):
    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class Engine:
    """Implements `xenemu.hv.cpu.Cpu` for the vcpu that is loaded in it.

    `handler` must be set before `run`. An exception that the handler lets out stops the guest
    and is raised by `run`.

    `look` is called now and then while the guest runs, by the host's clock, and stops the guest
    with `stop` if somebody wants that. It must not depend on the guest's registers, which are not
    all in place then, nor change anything of the guest's.
    """

    regs: MutableSequence[int]
    handler: ExitHandler
    look: Callable[[], None]

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        loaded = shim.load()
        self._shim = loaded
        self._state = loaded.state
        unicorn = loaded.unicorn
        self._uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        uc.ctl_set_cpu_model(CPU_MODEL)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory.mapping))
        uc.mem_map_ptr(0, memory.nr_frames << 12, unicorn.UC_PROT_ALL, address)
        uc.ctl_exits_enabled(True)
        handle = uc._uch.value
        ctypes.c_uint8.from_address(handle + UC_NO_EXIT_REQUEST).value = 1

        state = self._state
        loaded.attach(handle)
        env, cpu = state.env, state.cpu
        self.regs = (ctypes.c_uint64 * 16).from_address(env)  # type: ignore[assignment]
        self._rip = ctypes.c_uint64.from_address(env + ENV_EIP)
        self._hflags = ctypes.c_uint32.from_address(env + ENV_HFLAGS)
        self._segs = [*(_Segment * 10).from_address(env + ENV_SEGS)]  # made once: that is slow
        self._cr = (ctypes.c_uint64 * 5).from_address(env + ENV_CR)
        self._efer = ctypes.c_uint64.from_address(env + ENV_EFER)
        self._dr = (ctypes.c_uint64 * 8).from_address(env + ENV_DR)
        self._tsc_aux = ctypes.c_uint64.from_address(env + ENV_TSC_AUX)
        self._saved = (ctypes.c_ubyte * ENV_SAVED).from_address(env)
        self._interrupt_request = ctypes.c_uint32.from_address(cpu + CPU_INTERRUPT_REQUEST)
        self._halted = ctypes.c_uint32.from_address(cpu + CPU_HALTED)
        self._exception_index = ctypes.c_int32.from_address(cpu + CPU_EXCEPTION_INDEX)
        state.native = 0  # or the last engine's guest would be asked about MSRs
        self._self_check()
        features = (ctypes.c_uint64 * NR_FEATURE_WORDS).from_address(env + ENV_FEATURES)
        for index, word in FEATURE_WORDS.items():
            features[index] &= word_of(HOST_FEATURES, word)

        self._written = bytearray(memory.nr_frames)
        state.code = ctypes.addressof(ctypes.c_char.from_buffer(memory.code))
        state.written = ctypes.addressof(ctypes.c_char.from_buffer(self._written))
        state.frames = memory.nr_frames
        state.ram = address
        state.left = state.end = state.skipped_ns = 0
        state.populated = state.ports = state.overrides = 0
        state.exits = state.flushes = state.fills = 0
        state.blocks_translated = state.code_frames = 0
        state.looked_ns = 0
        state.undefined_bits = 0
        self.seed_random(0)
        self.set_prices({})
        self.look = lambda: None
        self.put_off = 0  # nanoseconds of the slice that a step leaves for later
        self._error: BaseException | None = None
        self._enter = ctypes.PYFUNCTYPE(None)(self._on_exit)
        state.enter = ctypes.cast(self._enter, ctypes.c_void_p).value
        self._look = ctypes.PYFUNCTYPE(None)(self._on_look)
        state.look = ctypes.cast(self._look, ctypes.c_void_p).value
        self._add_hook(unicorn.UC_HOOK_INTR, loaded.hook_interrupt)
        self._add_hook(unicorn.UC_HOOK_INSN_INVALID, loaded.hook_undefined)

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

    def _self_check(self) -> None:
        """Write registers through the API and find them where the shim will look."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc, magic = self._uc, 0x5EED_0000_1234_5678
        places: list[tuple[int, Callable[[], int]]] = [
            (x86.UC_X86_REG_RAX, lambda: self.regs[0]),
            (x86.UC_X86_REG_R15, lambda: self.regs[15]),
            (x86.UC_X86_REG_FS_BASE, lambda: self._segs[Seg.FS].base),
            (x86.UC_X86_REG_GS_BASE, lambda: self._segs[Seg.GS].base),
            (x86.UC_X86_REG_CR2, lambda: self._cr[2]),
            (x86.UC_X86_REG_DR0, lambda: self._dr[0]),
            (x86.UC_X86_REG_DR3, lambda: self._dr[3]),
            (x86.UC_X86_REG_RIP, lambda: self._rip.value),
        ]
        for register, place in places:
            before = uc.reg_read(register)
            uc.reg_write(register, magic)
            found = place()
            uc.reg_write(register, before)
            if found != magic:
                raise _kept_elsewhere(f"register {register}")
        uc.msr_write(TSC_AUX_MSR, magic)
        if self._tsc_aux.value != magic:
            raise _kept_elsewhere("TSC_AUX")
        self._tsc_aux.value = 0

    def attach(self, handler: Any) -> None:
        """Set who handles the exits: an `ExitHandler`."""
        self.handler = handler

    # ---- entering and leaving the hypervisor ----

    def _on_exit(self) -> None:
        try:
            self._dispatch(self._state.kind)
            if self._memory.stale_code:
                self._drop_stale_code()
        except BaseException as error:
            self._error = error
            self.stop()

    def _on_look(self) -> None:
        try:
            self.look()
        except BaseException as error:
            self._error = error
            self.stop()

    def _dispatch(self, kind: int) -> None:
        state = self._state
        if kind == shim.EXIT_EXCEPTION:
            self.handler.exception(state.vector, state.error)
        elif kind == shim.EXIT_SYSCALL:
            self.handler.syscall()
        elif kind == shim.EXIT_UNDEFINED:
            self.handler.invalid_opcode()
        elif kind == shim.EXIT_SYSENTER:
            self.handler.sysenter()
        elif kind == shim.EXIT_SOFT_INT:
            self.handler.software_interrupt(state.vector, state.size)
        elif not self.handler.cpuid():
            state.answer = shim.REFUSED

    def _drop_stale_code(self) -> None:
        for mfn in sorted(self._memory.stale_code):
            self._shim.invalidate(mfn)
        self._memory.stale_code.clear()

    def run(self, deadline_ns: int) -> None:
        """Run the guest until virtual time `deadline_ns`, or until `stop` was called."""
        self.set_deadline(deadline_ns)
        self.resume()

    def set_deadline(self, deadline_ns: int) -> None:
        """Make `deadline_ns` the end of the slice that `resume` runs."""
        state = self._state
        end = max(min(deadline_ns, MAX_RUN_NS) - state.skipped_ns, 0)
        state.left += end - state.end
        state.end = end

    def resume(self) -> None:
        """Run the guest on to the deadline that is set, or until `stop` was called."""
        state = self._state
        if state.left <= 0:
            return
        if self._memory.stale_code:
            self._drop_stale_code()
        status = self._shim.run(self._rip.value)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if state.uncounted:
            raise EngineError("this build of unicorn begins its blocks in another way")
        if status == shim.GAVE_UP:
            words = self._shim.last_words().decode(errors="replace")
            raise EngineGaveUp(f"the CPU engine gave up at {self.rip:#x}: {words}")
        if status and not state.stop:
            raise EngineError(f"unicorn stopped with error {status} at {self.rip:#x}")

    def limit(self, deadline_ns: int) -> None:
        """Leave `run` no later than at virtual time `deadline_ns`."""
        state = self._state
        end = deadline_ns - state.skipped_ns
        if end < state.end:
            state.left -= state.end - end
            state.end = end
        self.put_off = max(0, min(self.put_off, end - state.end))

    def leave_by_iret(self) -> None:
        """See `Cpu.leave_by_iret`."""
        self._state.by_iret = 1

    def set_prices(self, prices: Mapping[Exit, int]) -> None:
        """Let each exit take so many nanoseconds of the guest's time; others take none."""
        for exit_, kind in PRICED.items():
            self._state.prices[kind] = prices.get(exit_, 0)

    def spend(self, ns: int) -> None:
        """Let time pass for the hypervisor's work; only while the guest is in an exit."""
        state = self._state
        state.left -= ns
        state.end -= ns
        state.skipped_ns += ns

    def stop(self) -> None:
        """Leave `run` before the next instruction of the guest."""
        self._state.stop |= shim.STOP_HYPERVISOR

    @property
    def slice_over(self) -> bool:
        """Whether the guest has reached its deadline, or what stopped it was not the debugger."""
        return self._state.left <= 0 or bool(self._state.stop & shim.STOP_HYPERVISOR)

    def skip_to(self, when_ns: int) -> None:
        """Let idle time pass: move virtual time forward to `when_ns`."""
        self._state.skipped_ns += max(0, when_ns - self.now_ns)

    @property
    def now_ns(self) -> int:
        """Virtual time: instructions executed, prices paid, and idle time skipped."""
        state = self._state
        return int(state.end - state.left + state.skipped_ns)

    @property
    def instructions(self) -> int:
        """Instructions executed since start."""
        return int(self._state.end - self._state.left)

    def statistics(self) -> dict[str, int]:
        """Counters of the engine's own work."""
        names = ("exits", "flushes", "fills", "blocks_translated", "code_frames")
        return {name: getattr(self._state, name) for name in names}

    # ---- several vcpus ----

    def save(self) -> bytes:
        """The loaded vcpu's registers, as bytes for `load`."""
        self._shim.sync_rflags()
        extra = (self._interrupt_request.value, self._halted.value, self._exception_index.value)
        dr7 = self._disarm()
        saved = bytes(self._saved) + b"".join((v & 0xFFFFFFFF).to_bytes(4, "little") for v in extra)
        self._shim.set_dr7(dr7)
        return saved + dr7.to_bytes(8, "little")

    def load(self, saved: bytes) -> None:
        """Load another vcpu's registers, as `save` returned them."""
        self._disarm()
        ctypes.memmove(self._saved, saved, ENV_SAVED)
        words = [int.from_bytes(saved[ENV_SAVED + i : ENV_SAVED + i + 4], "little") for i in (0, 4)]
        self._interrupt_request.value, self._halted.value = words
        self._exception_index.value = -1
        self._shim.reload_rflags()
        self._shim.set_dr7(int.from_bytes(saved[-8:], "little"))
        self.flush_tlb()

    def _disarm(self) -> int:
        """Take the breakpoints out of Unicorn, which has them outside of the registers; DR7."""
        dr7 = int(self._dr[7])
        self._shim.set_dr7(0)
        return dr7

    # ---- Cpu ----

    @property
    def rip(self) -> int:
        return self._rip.value

    @rip.setter
    def rip(self, value: int) -> None:
        self._rip.value = value

    @property
    def rflags(self) -> int:
        return int(self._state.rflags)

    @rflags.setter
    def rflags(self, value: int) -> None:
        self._state.rflags = value
        self._state.rflags_dirty = 1

    @property
    def cr0(self) -> int:
        return int(self._cr[0])

    @property
    def cr2(self) -> int:
        return int(self._cr[2])

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr[2] = value

    @property
    def cr3(self) -> int:
        return int(self._cr[3])

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr[3] = value
        self._state.flush = 1

    @property
    def code64(self) -> bool:
        return bool(self._hflags.value & HF_CS64)

    def set_task_switched(self, value: bool) -> None:
        """Set or clear CR0.TS."""
        if value:
            self._cr[0] |= CR0_TS
            self._hflags.value |= HF_TS
        else:
            self._cr[0] &= ~CR0_TS
            self._hflags.value &= ~HF_TS

    def set_tsc_disabled(self, value: bool) -> None:
        """Set or clear CR4.TSD: RDTSC above CPL 0 then faults."""
        self._cr[4] = self._cr[4] & ~CR4_TSD | (CR4_TSD if value else 0)

    def set_fsgsbase(self, value: bool) -> None:
        """Set or clear CR4.FSGSBASE: without it, RDFSBASE and the like are undefined."""
        self._cr[4] = self._cr[4] & ~CR4_FSGSBASE | (CR4_FSGSBASE if value else 0)

    def set_tsc_aux(self, value: int) -> None:
        """Set what RDTSCP leaves in ECX."""
        self._tsc_aux.value = value

    def undefined(self) -> Undefined | None:
        """See `Cpu.undefined`."""
        state = self._state
        if not state.undefined_bits:
            return None
        code = bytes(state.undefined_code)[: state.undefined_bytes]
        return Undefined(state.undefined_rip, state.undefined_bits, code)

    def seed_random(self, seed: int) -> None:
        """Begin the sequence of what RDRAND and RDSEED read; `seed` has 64 bits."""
        self._state.random = seed

    def segment(self, which: Seg) -> Segment:
        """Read a segment register with its hidden part."""
        s = self._segs[which]
        return Segment(s.selector, s.base, s.limit, s.flags & ATTRIBUTES)

    def selector(self, which: Seg) -> int:
        """Read a segment register's selector."""
        return int(self._segs[which].selector)

    def set_segment(self, which: Seg, value: Segment) -> None:
        """Load a segment register; CS, SS, DS and ES also set the CPU's mode."""
        s = self._segs[which]
        s.selector, s.base, s.limit = value.selector, value.base, value.limit
        s.flags = value.attributes
        if which <= Seg.DS:
            self._update_mode()

    def _update_mode(self) -> None:
        cs, ss = self._segs[Seg.CS], self._segs[Seg.SS]
        hflags = self._hflags.value & ~(HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_CS64)
        hflags |= (cs.flags >> 13) & 3
        if cs.flags & ATTR_L:
            hflags |= HF_CS64 | HF_CS32 | HF_SS32
        else:
            hflags |= (HF_CS32 if cs.flags & ATTR_DB else 0) | (
                HF_SS32 if ss.flags & ATTR_DB else 0
            )
            if not hflags & HF_CS32 or ss.base | self._segs[Seg.DS].base | self._segs[Seg.ES].base:
                hflags |= HF_ADDSEG
        self._hflags.value = hflags

    def debug_register(self, index: int) -> int:
        return int(self._dr[index])

    def set_debug_register(self, index: int, value: int) -> None:
        if index == 7:
            self._shim.set_dr7(value)
            return
        if index >= BREAKPOINTS:
            self._dr[index] = value
            return
        dr7 = self._disarm()
        self._dr[index] = value
        self._shim.set_dr7(dr7)

    def came_from(self) -> int:
        """See `Cpu.came_from`."""
        return int(self._shim.came_from())

    def flush_tlb(self) -> None:
        """Forget all translations before the guest runs again."""
        self._state.flush = 1

    def flush_tlb_page(self, vaddr: int) -> None:
        """Forget the translations of one page before the guest runs again."""
        self._shim.flush_page(vaddr)

    @property
    def efer(self) -> int:
        return int(self._efer.value)

    @property
    def cr4(self) -> int:
        return int(self._cr[4])

    def leave_long_mode(self) -> None:
        """Put the CPU in 32-bit protected mode without paging; the way there drops EFER.LMA."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc = self._uc
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PE_PG)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PE)
        uc.msr_write(EFER_MSR, 0)
        uc.reg_write(x86.UC_X86_REG_CR4, 0)

    def turn_paging_on(self, cr3: int, long_mode: bool) -> None:
        """Put the CPU in the mode that a PV guest finds: 4-level paging, or 32-bit PAE."""
        from unicorn import x86_const as x86  # noqa: PLC0415 (after the shim)

        uc = self._uc
        if not long_mode:
            self.leave_long_mode()
        uc.msr_write(EFER_MSR, EFER_SCE_LME_LMA_NX if long_mode else EFER_SCE_NX)
        uc.reg_write(x86.UC_X86_REG_CR4, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)
        uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        uc.reg_write(x86.UC_X86_REG_CR0, CR0_PV)


def _kept_elsewhere(what: str) -> EngineError:
    return EngineError(
        f"this build of unicorn {shim.UNICORN_VERSION} keeps {what} elsewhere:"
        " xenemu supports the x86-64 Linux wheel from the Python index"
    )
