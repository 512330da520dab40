"""The private state of PV domains and vcpus. Plain data.

In Xen: include/asm-x86/domain.h (struct pv_domain, struct pv_vcpu).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, ClassVar, Final, Generic, TypeVar, overload

from xenemu.hv.current import Current
from xenemu.hv.state.vcpu import Vcpu
from xenemu.records import dataclass
from xenemu.x86.paging import Mfn

DR6_DEFAULT = 0xFFFF0FF0
DR7_DEFAULT = 0x400
NO_TABLE = Mfn(0)


@dataclass(frozen=True)
class Trap:
    """Where a trap or callback of the guest's begins; `mask_events` on entry."""

    cs: int
    address: int
    dpl: int = 0
    mask_events: bool = False


NO_TRAP = Trap(0, 0)


@dataclass(frozen=True)
class StartState:
    """Where a vcpu starts."""

    rip: int
    rsp: int
    rsi: int


@dataclass(frozen=True)
class StartContext:
    """Where a vcpu starts that another vcpu has initialised.

    `general` has the order of `hv.cpu.Reg`. `selectors` has that of the first `hv.cpu.Seg`: ES, CS,
    SS, DS, FS, GS. The bases are a 64-bit guest's; that of FS, and the user's of GS, count where
    the selector is null. `fpu` is None for a fresh FPU, `debug` are DR0 to DR7.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    selectors: tuple[int, ...]
    fs_base: int
    gs_base_kernel: int
    gs_base_user: int
    fpu: bytes | None
    debug: tuple[int, ...]


@dataclass
class PvDomain:
    """What Xen keeps for a PV domain as a whole.

    `perdomain_l1` are the frames that map each vcpu's GDT and LDT, 16 vcpus in a frame. `xen_gdt`
    is Xen's own page of descriptors, which follows the guest's part of each GDT.
    """

    perdomain_l1: list[Mfn]
    xen_gdt: Mfn
    zero_page: Mfn
    cmos_index: int = 0  # the last byte written to port 0x70
    pci_config_address: int = 0  # the last word written to port 0xCF8


# The fields of a `PvVcpu` that the C shim reads and writes, too, 8 bytes each: the struct of
# cpu/native/pv_vcpu.def. The engine compares both when it starts.
SHARED: Final = (
    "kernel_root", "user_root", "kernel_mode", "kernel_sp", "kernel_ss", "inactive_gs", "cr2",
    "iopl", "task_switched",
)  # fmt: skip

T = TypeVar("T")


class Shared(Generic[T]):
    """A field that lies in `PvVcpu.words`."""

    def __init__(self, kind: Callable[[int], T], default: T | None = None) -> None:
        self.kind, self.default = kind, default

    def __set_name__(self, owner: type[object], name: str) -> None:
        self.index = SHARED.index(name)

    @overload
    def __get__(self, vcpu: None, owner: object) -> T: ...
    @overload
    def __get__(self, vcpu: PvVcpu, owner: object) -> T: ...
    def __get__(self, vcpu: PvVcpu | None, owner: object) -> T:
        if vcpu is not None:
            return self.kind(vcpu.words[self.index])
        if self.default is None:
            raise AttributeError("there is no default")
        return self.default

    def __set__(self, vcpu: PvVcpu, value: T) -> None:
        vcpu.words[self.index] = int(value)  # type: ignore[call-overload]


@dataclass
class PvVcpu:
    """What Xen keeps for a PV vcpu in addition to its registers.

    A 64-bit guest has two address spaces, `kernel_root` and `user_root` (0 if there is none).
    `kernel_mode` says which of them the vcpu is in. `inactive_gs` is the GS base of the other mode;
    on hardware, KERNEL_GS_BASE would hold it.

    The callback of 32-bit SYSCALL is kept and never entered, because Intel's CPUs have no such
    instruction.
    """

    kernel_root: Shared[Mfn] = Shared(Mfn)
    user_root: Shared[Mfn] = Shared(Mfn, NO_TABLE)
    entry: StartState | StartContext | None = None
    kernel_mode: Shared[bool] = Shared(bool, True)
    inactive_gs: Shared[int] = Shared(int, 0)
    traps: dict[int, Trap] = field(default_factory=dict)
    event_callback: Trap = NO_TRAP
    failsafe_callback: Trap = NO_TRAP
    syscall_callback: Trap = NO_TRAP
    syscall32_callback: Trap = NO_TRAP
    sysenter_callback: Trap = NO_TRAP
    kernel_ss: Shared[int] = Shared(int, 0)
    kernel_sp: Shared[int] = Shared(int, 0)
    task_switched: Shared[bool] = Shared(bool, False)  # the guest's CR0.TS
    cr2: Shared[int] = Shared(int, 0)
    cr4: int = 0  # as the guest reads it
    dr6: int = DR6_DEFAULT
    dr7: int = DR7_DEFAULT  # as the CPU has it: without I/O breakpoints,
    dr7_emul: int = 0  # whose enable bits are here
    iopl: Shared[int] = Shared(int, 0)
    io_bitmap: int = 0  # guest virtual address
    io_bitmap_ports: int = 0
    gdt_frames: list[Mfn] = field(default_factory=list)
    gdt_entries: int = 0
    ldt_base: int = 0
    ldt_entries: int = 0
    ldt_frames: dict[int, Mfn] = field(default_factory=dict)  # page of the LDT -> mapped frame
    old_tables: list[int] = field(default_factory=list)  # what its calls have still to drop
    refusal: str = ""  # why, if a refusal left them: told when all are dropped
    nmi_pending: bool = False
    nmi_masked: bool = False  # from an NMI to the next iret

    words: ClassVar[memoryview]  # each vcpu's own, which is not a field

    def __new__(cls, *_args: object, **_fields: object) -> PvVcpu:
        """Make the memory that C shares first."""
        self = super().__new__(cls)
        vars(self)["words"] = memoryview(bytearray(8 * len(SHARED))).cast("Q")
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def pv(current: Current) -> PvVcpu:
    """The current vcpu's PV state."""
    state = current.vcpu.arch
    assert isinstance(state, PvVcpu)
    return state


def pv_vcpu(vcpu: Vcpu) -> PvVcpu:
    """Any vcpu's PV state."""
    assert isinstance(vcpu.arch, PvVcpu)
    return vcpu.arch


def pv_domain(current: Current) -> PvDomain:
    """The current domain's PV state."""
    state = current.domain.arch
    assert isinstance(state, PvDomain)
    return state
