"""Xen's own state of an HVM domain, as records: what is in the stream's HVM_CONTEXT.

Of a PVH domain, these are each vcpu's registers, its local APIC and its MSRs. Nothing else is there
to be saved.

In Xen: common/hvm/save.c; arch/x86/hvm/hvm.c (hvm_save_cpu_ctxt, hvm_load_cpu_ctxt), vlapic.c,
mtrr.c, arch/x86/cpu/mcheck/vmce.c
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, TypeVar

from xenemu.abi.arch_x86.hvm import save as abi
from xenemu.abi.arch_x86.hvm.save import hvm_hw_cpu, hvm_hw_lapic, hvm_hw_mtrr, hvm_save_descriptor
from xenemu.abi.layout import Struct
from xenemu.cpu.context import Context, Interrupts
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.machine.migration.records import StreamError
from xenemu.pvh import context as pvh_context
from xenemu.pvh.lapic import APIC_BASE_ENABLE, IRR, ISR, SPIV, SPIV_ENABLED, TDCR, Lapic
from xenemu.pvh.mtrr import CAPABILITIES, Mtrrs, pat_okay
from xenemu.pvh.state import StartContext
from xenemu.x86 import cpuid, msr, segment
from xenemu.x86.paging import is_canonical

S = TypeVar("S", bound=Struct)

WIDTH: Final = 8  # the records are the same in both
NO_CHANGESET: Final = (1 << 64) - 1
HW_DISABLED, SW_DISABLED = 1, 2  # of a local APIC
REGISTER_SHIFT: Final = 4  # of its page
NR_REGISTERS: Final = 64
VECTOR_WORDS: Final = 8
MSR_COUNT: Final = struct.Struct("<II")
KEPT_MSRS: Final = (msr.MISC_FEATURES_ENABLES,)
HIDDEN: Final = (Seg.GDTR, Seg.IDTR)  # which have a base and a limit alone
XSAVE: Final = 16
VIRIDIAN: Final = (15, 17)
DEVICES: Final = {3: "PIC", 4: "I/O APIC", 7: "PCI bus", 8: "ISA bus", 9: "PCI-ISA bridge"} | {
    10: "PIT",
    11: "RTC",
    12: "HPET",
    13: "ACPI timer",
}
MXCSR: Final = slice(24, 28)  # of FXSAVE's area
MXCSR_DEFINED: Final = 0xFFFF
SSE_STATE: Final = 3  # of XCR0: x87 and SSE


# Writing.


def record(code: int, instance: int, data: bytes) -> bytes:
    """A record with its descriptor."""
    return hvm_save_descriptor(code, instance, len(data)).pack(WIDTH) + data


def header() -> bytes:
    """The first record."""
    found = abi.hvm_save_header(
        abi.HVM_FILE_MAGIC, abi.HVM_FILE_VERSION, NO_CHANGESET, cpuid.SIGNATURE, cpuid.TSC_KHZ
    )
    return record(abi.HVM_SAVE_HEADER, 0, found.pack(WIDTH))


def cpu(found: Context, now_ns: int) -> hvm_hw_cpu:
    """A vcpu's registers as a record."""
    fields: dict[str, int | bytes] = {
        register.name.lower(): found.general[register] for register in Reg
    }
    for which in Seg:
        part, name = found.segments[which], which.name.lower()
        fields |= {f"{name}_base": part.base, f"{name}_limit": part.limit}
        if which not in HIDDEN:
            fields[f"{name}_sel"] = part.selector
            fields[f"{name}_arbytes"] = part.attributes >> 8 & 0xFF | part.attributes >> 12 & 0xF00
    for name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4"):
        fields[name] = getattr(found, name)
    for n in (0, 1, 2, 3, 6, 7):
        fields[f"dr{n}"] = found.debug[n]
    for name, number in MSR_FIELDS.items():
        fields[name] = found.msrs[number]
    return hvm_hw_cpu(
        fpu_regs=found.fpu,
        msr_flags=0,
        msr_efer=found.efer,
        tsc=now_ns,
        pending_event=0,
        error_code=0,
        flags=abi.XEN_X86_FPU_INITIALISED,
        pad0=0,
        **fields,  # type: ignore[arg-type]
    )


MSR_FIELDS: Final = {
    "sysenter_cs": msr.IA32_SYSENTER_CS,
    "sysenter_esp": msr.IA32_SYSENTER_ESP,
    "sysenter_eip": msr.IA32_SYSENTER_EIP,
    "shadow_gs": msr.KERNEL_GS_BASE,
    "msr_lstar": msr.LSTAR,
    "msr_star": msr.STAR,
    "msr_cstar": msr.CSTAR,
    "msr_syscall_mask": msr.FMASK,
    "msr_tsc_aux": msr.TSC_AUX,
}
ADDRESSES: Final = frozenset(
    {"sysenter_esp", "sysenter_eip", "shadow_gs", "msr_lstar", "msr_cstar"}
)


def lapic(found: Lapic) -> tuple[bytes, bytes]:
    """A local APIC's two records, without their descriptors."""
    disabled = 0 if found.apic_base & APIC_BASE_ENABLE else HW_DISABLED
    disabled |= 0 if found.regs[SPIV] & SPIV_ENABLED else SW_DISABLED
    shift = (found.regs[TDCR] & 3 | found.regs[TDCR] >> 1 & 4) + 1 & 7
    hidden = hvm_hw_lapic(found.apic_base, disabled, 1 << shift, 0)
    page = bytearray(NR_REGISTERS << REGISTER_SHIFT)
    for number, value in enumerate(found.regs):
        struct.pack_into("<I", page, number << REGISTER_SHIFT, value & 0xFFFFFFFF)
    for first, vectors in ((ISR, found.isr), (IRR, found.irr)):
        for n in range(VECTOR_WORDS):
            at = first + n << REGISTER_SHIFT
            struct.pack_into("<I", page, at, vectors >> 32 * n & 0xFFFFFFFF)
    return hidden.pack(WIDTH), bytes(page)


def mtrr(found: Mtrrs, pat: int) -> hvm_hw_mtrr:
    """A vcpu's PAT and MTRRs as a record."""
    variable = [found.read(number) for number in msr.MTRR_VARIABLE]
    fixed = [found.read(number) for number in msr.MTRR_FIXED]
    return hvm_hw_mtrr(
        pat,
        struct.pack("<16Q", *variable),
        struct.pack("<11Q", *fixed),
        CAPABILITIES,
        found.read(msr.MTRR_DEF_TYPE),
    )


def kept_msrs(values: dict[int, int]) -> bytes:
    """The MSRs that have a record if they are not 0; else nothing."""
    entries = [
        abi.hvm_one_msr(number, 0, values[number]).pack(WIDTH)
        for number in KEPT_MSRS
        if values.get(number)
    ]
    return MSR_COUNT.pack(len(entries), 0) + b"".join(entries) if entries else b""


# Reading.


def records(data: memoryview) -> Iterator[tuple[int, int, bytes]]:
    """The records between the header and the end: code, instance, bytes. StreamError."""
    found = _records(data)
    code, _, body = next(found, (abi.HVM_SAVE_END, 0, b""))
    if code != abi.HVM_SAVE_HEADER:
        raise StreamError("its HVM_CONTEXT has no header")
    head = unpack(abi.hvm_save_header, body)
    if (head.magic, head.version) != (abi.HVM_FILE_MAGIC, abi.HVM_FILE_VERSION):
        raise StreamError("its HVM_CONTEXT is of another version")
    for code, instance, body in found:
        if code in DEVICES:
            raise StreamError(
                f"its domain has a {DEVICES[code]}: it is HVM with devices, and only PVH can be"
                " restored here"
            )
        if code in VIRIDIAN:
            raise StreamError("its domain has Viridian's enlightenments, which are not here")
        if code == XSAVE:
            _check_xsave(body)
            continue
        yield code, instance, body


def _records(data: memoryview) -> Iterator[tuple[int, int, bytes]]:
    size, at = hvm_save_descriptor.sizeof(WIDTH), 0
    while True:
        if at + size > len(data):
            raise StreamError("its HVM_CONTEXT has no end")
        found = hvm_save_descriptor.unpack(WIDTH, bytes(data[at : at + size]))
        at += size
        if found.typecode == abi.HVM_SAVE_END:
            return
        if at + found.length > len(data):
            raise StreamError(f"record {found.typecode} of its HVM_CONTEXT is not whole")
        yield found.typecode, found.instance, bytes(data[at : at + found.length])
        at += found.length


def unpack(kind: type[S], body: bytes) -> S:
    """A record's struct; StreamError: it has another size."""
    if len(body) != kind.sizeof(WIDTH):
        raise StreamError(f"a {kind.__name__} of its HVM_CONTEXT has {len(body)} bytes")
    return kind.unpack(WIDTH, body)


def _check_xsave(body: bytes) -> None:
    """Its area repeats what the CPU's record has of x87 and SSE; StreamError if it has more."""
    if len(body) < 24 or struct.unpack_from("<Q", body, 16)[0] & ~SSE_STATE:
        raise StreamError("its vcpus have state of XSAVE's, which the CPU here lacks")


def context(found: hvm_hw_cpu, pat: int) -> Context:
    """The registers of a record. StreamError: a CPU cannot be like that."""
    _check(found)
    segments = tuple(_segment(found, which) for which in Seg)
    msrs = {number: getattr(found, name) for name, number in MSR_FIELDS.items()}
    return Context(
        general=tuple(getattr(found, register.name.lower()) for register in Reg),
        rip=found.rip,
        rflags=found.rflags,
        segments=segments,
        cpl=segment.dpl(segments[Seg.SS].attributes),
        cr0=found.cr0,
        cr2=found.cr2,
        cr3=found.cr3,
        cr4=found.cr4,
        efer=found.msr_efer,
        debug=(found.dr0, found.dr1, found.dr2, found.dr3, 0, 0, found.dr6, found.dr7),
        msrs={**msrs, msr.IA32_CR_PAT: pat},
        fpu=found.fpu_regs,
        interrupts=Interrupts(),
    )


def _segment(found: hvm_hw_cpu, which: Seg) -> Segment:
    name = which.name.lower()
    base, limit = getattr(found, f"{name}_base"), getattr(found, f"{name}_limit")
    if which in HIDDEN:
        return Segment(0, base, limit)
    rights = getattr(found, f"{name}_arbytes")
    attributes = (rights & 0xFF) << 8 | (rights & 0xF00) << 12
    return Segment(getattr(found, f"{name}_sel") & 0xFFFF, base, limit, attributes)


def _check(found: hvm_hw_cpu) -> None:
    """StreamError if a CPU cannot enter a guest like that."""
    for name in ADDRESSES:
        if not is_canonical(getattr(found, name)):
            raise StreamError(f"{name} of a vcpu is no canonical address")
    start = StartContext(
        (), found.rip, found.rflags, {}, found.cr0, found.cr3, found.cr4, found.msr_efer
    )
    try:
        pvh_context.check_bits(found.cr4, found.msr_efer)
        pvh_context.check_for_cpu(start)
    except (XenError, DomainCrash) as error:
        raise StreamError(f"a vcpu: {error}") from None
    mxcsr = int.from_bytes(found.fpu_regs[MXCSR], "little")
    wrong = {
        "an event that was under way": found.pending_event >> 31,
        "reserved bits in DR6 or DR7": (found.dr6 | found.dr7) >> 32,
        "reserved bits in MXCSR": mxcsr & ~MXCSR_DEFINED,
        "reserved bits in an MSR": (found.msr_syscall_mask | found.msr_tsc_aux) >> 32,
    }
    for what, is_there in wrong.items():
        if is_there:
            raise StreamError(f"a vcpu has {what}")


def load_lapic(target: Lapic, hidden: hvm_hw_lapic) -> None:
    """Take over what is not in the page. StreamError: no local APIC is like that."""
    if not target.set_apic_base(hidden.apic_base_msr) and target.apic_base != hidden.apic_base_msr:
        raise StreamError(f"a local APIC has the base {hidden.apic_base_msr:#x}")


def load_lapic_page(target: Lapic, page: bytes, now_ns: int) -> None:
    """Take over a local APIC's registers; its timer counts from the start, as in Xen."""
    words = struct.unpack(f"<{4 * NR_REGISTERS}I", page)[::4]
    target.regs = list(words[: len(target.regs)])
    target.isr = sum(words[ISR + n] << 32 * n for n in range(VECTOR_WORDS))
    target.irr = sum(words[IRR + n] << 32 * n for n in range(VECTOR_WORDS))
    for first in (ISR, IRR):
        target.regs[first : first + VECTOR_WORDS] = [0] * VECTOR_WORDS
    target.rearm(now_ns)


def load_mtrr(found: hvm_hw_mtrr) -> tuple[Mtrrs, int]:
    """MTRRs and PAT. StreamError: no CPU takes them."""
    result = Mtrrs()
    values = dict(zip(msr.MTRR_VARIABLE, struct.unpack("<16Q", found.msr_mtrr_var), strict=True))
    values |= zip(msr.MTRR_FIXED, struct.unpack("<11Q", found.msr_mtrr_fixed), strict=True)
    values[msr.MTRR_DEF_TYPE] = found.msr_mtrr_def_type
    for number, value in values.items():
        if value != result.read(number) and not result.write(number, value):
            raise StreamError(f"MTRR {number:#x} of a vcpu cannot be {value:#x}")
    if not pat_okay(found.msr_pat_cr):
        raise StreamError(f"PAT of a vcpu cannot be {found.msr_pat_cr:#x}")
    return result, found.msr_pat_cr


def load_msrs(body: bytes) -> dict[int, int]:
    """The MSRs of a CPU_MSR record. StreamError."""
    if len(body) < MSR_COUNT.size:
        raise StreamError("the MSRs of a vcpu are not whole")
    count, _ = MSR_COUNT.unpack_from(body)
    size = abi.hvm_one_msr.sizeof(WIDTH)
    if len(body) != MSR_COUNT.size + count * size:
        raise StreamError(f"the MSRs of a vcpu are not {count}")
    found = {}
    for at in range(MSR_COUNT.size, len(body), size):
        entry = abi.hvm_one_msr.unpack(WIDTH, body[at : at + size])
        if entry.index not in KEPT_MSRS or entry.val & ~msr.MISC_FEATURES_CPUID_FAULTING:
            raise StreamError(f"MSR {entry.index:#x} of a vcpu cannot be {entry.val:#x}")
        found[entry.index] = entry.val
    return found
