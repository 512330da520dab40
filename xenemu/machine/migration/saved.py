"""What a stream says of a domain: `Saved`, as records and back.

Nothing here knows of a machine. `write` and `read` are each other's inverse. What is read is
checked as far as the document of the format goes. What it means to a domain is checked by who makes
the domain.

In Xen: docs/specs/libxc-migration-stream.pandoc; tools/libs/guest/xg_sr_common.h
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import field
from typing import Final

from xenemu.abi.domctl import (
    PFINFO_BROKEN,
    PFINFO_LTABTYPE_MASK,
    PFINFO_NOTAB,
    PFINFO_XALLOC,
    PFINFO_XTAB,
)
from xenemu.machine.migration.records import (
    Kind,
    Put,
    Record,
    StreamError,
    put_headers,
    put_record,
    read_headers,
    read_records,
)
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE

Data = bytes | memoryview

BATCH: Final = 1024  # pages in a record, as Xen's tools have them
PFN_BITS: Final = 52
PFN_MASK: Final = (1 << PFN_BITS) - 1
TYPE_SHIFT: Final = 60
TABLES: Final = (1, 2, 3, 4)  # PFINFO_L*TAB
ZEROED: Final = bytes(PAGE_SIZE)
NOTHING: Final = (PFINFO_XTAB, PFINFO_BROKEN)  # types without memory

COUNT: Final = struct.Struct("<II")
PV_INFO: Final = struct.Struct("<BBHI")
P2M_RANGE: Final = struct.Struct("<II")
VCPU: Final = struct.Struct("<II")
XCRS: Final = struct.Struct("<QQ")  # what XCR0 is, and all that it was
SSE: Final = 3  # in them: x87 and SSE
TSC_INFO: Final = struct.Struct("<IIQII")
PARAM: Final = struct.Struct("<QQ")
CPUID_LEAF: Final = struct.Struct("<6I")
MSR_ENTRY: Final = struct.Struct("<IIQ")
POLICIES: Final = {Record.X86_CPUID_POLICY: CPUID_LEAF, Record.X86_MSR_POLICY: MSR_ENTRY}
SHARED_INFO_SIZE: Final = PAGE_SIZE
LEVELS: Final = {8: 4, 4: 3}  # of page tables, by a PV guest's width


@dataclass
class Pages:
    """A domain's memory by pfn: each page's bytes, and what those are that are page tables.

    A table's kind is PFINFO_L1TAB to L4TAB, with PFINFO_LPINTAB if it is pinned. Its entries have
    pfns in place of mfns.
    """

    data: dict[int, Data] = field(default_factory=dict)
    kinds: dict[int, int] = field(default_factory=dict)


@dataclass
class TscInfo:
    """How a guest's TSC ran: XEN_DOMCTL_gettscinfo."""

    mode: int
    khz: int
    elapsed_ns: int  # of the guest's time
    incarnation: int


@dataclass
class PvVcpuState:
    """One vcpu's registers, each as the struct of its domctl."""

    basic: Data  # vcpu_guest_context
    extended: Data = b""
    msrs: Data = b""


@dataclass
class PvState:
    """What a stream has of a PV domain besides its memory."""

    width: int
    p2m_frames: list[int]  # pfns of the guest's own list of its frames
    max_pfn: int
    shared_info: Data
    vcpus: dict[int, PvVcpuState]


@dataclass
class HvmState:
    """What a stream has of an HVM domain besides its memory."""

    context: Data
    params: dict[int, int]


@dataclass
class Saved:
    """A domain as a stream has it; the policies are empty in a stream of version 2."""

    state: PvState | HvmState
    pages: Pages
    tsc: TscInfo | None
    cpuid_policy: Data = b""
    msr_policy: Data = b""


# Writing.


def write(put: Put, saved: Saved) -> None:
    """Write a domain's stream."""
    state = saved.state
    pv = state if isinstance(state, PvState) else None
    put_headers(put, Kind.PV if pv else Kind.HVM)
    if pv:
        put_record(put, Record.X86_PV_INFO, PV_INFO.pack(pv.width, LEVELS[pv.width], 0, 0))
    put_record(put, Record.X86_CPUID_POLICY, saved.cpuid_policy)
    put_record(put, Record.X86_MSR_POLICY, saved.msr_policy)
    put_record(put, Record.STATIC_DATA_END)
    if pv:
        frames = struct.pack(f"<{len(pv.p2m_frames)}Q", *pv.p2m_frames)
        put_record(put, Record.X86_PV_P2M_FRAMES, P2M_RANGE.pack(0, pv.max_pfn), frames)
    _put_pages(put, saved.pages)
    if saved.tsc:
        tsc = saved.tsc
        put_record(
            put,
            Record.X86_TSC_INFO,
            TSC_INFO.pack(tsc.mode, tsc.khz, tsc.elapsed_ns, tsc.incarnation, 0),
        )
    if isinstance(state, PvState):
        put_record(put, Record.SHARED_INFO, state.shared_info)
        _put_vcpus(put, state)
    else:
        params = b"".join(PARAM.pack(*item) for item in sorted(state.params.items()))
        put_record(put, Record.HVM_CONTEXT, state.context)
        put_record(put, Record.HVM_PARAMS, COUNT.pack(len(state.params), 0), params)
    put_record(put, Record.END)


def _put_pages(put: Put, pages: Pages) -> None:
    pfns = sorted(pages.data)
    for start in range(0, len(pfns), BATCH):
        batch = pfns[start : start + BATCH]
        numbers = [pages.kinds.get(pfn, PFINFO_NOTAB) << TYPE_SHIFT | pfn for pfn in batch]
        put_record(
            put,
            Record.PAGE_DATA,
            COUNT.pack(len(batch), 0),
            struct.pack(f"<{len(batch)}Q", *numbers),
            *(pages.data[pfn] for pfn in batch),
        )


def _put_vcpus(put: Put, state: PvState) -> None:
    for number, vcpu in sorted(state.vcpus.items()):
        for kind, data in (
            (Record.X86_PV_VCPU_BASIC, vcpu.basic),
            (Record.X86_PV_VCPU_EXTENDED, vcpu.extended),
            (Record.X86_PV_VCPU_MSRS, vcpu.msrs),
        ):
            if data:
                put_record(put, kind, VCPU.pack(number, 0), data)


# Reading.


@dataclass
class Reading:
    """What was read so far. A method for each type of record takes its body."""

    kind: Kind
    version: int
    pages: Pages = field(default_factory=Pages)
    bodies: dict[Record, memoryview] = field(default_factory=dict)  # of which there is one each
    width: int = 0
    p2m_frames: dict[int, int] = field(default_factory=dict)
    max_pfn: int = -1
    vcpus: dict[int, PvVcpuState] = field(default_factory=dict)

    def take(self, record: Record, body: memoryview) -> None:
        """Take a record; StreamError."""
        if record in ONCE:
            if record in self.bodies:
                raise StreamError(f"it has two records {record.name}")
            self.bodies[record] = body
        if record in ONLY and self.kind not in ONLY[record]:
            raise StreamError(f"it has a {record.name}, and is not of such a domain")
        if record in IN_VERSION_3 and self.version < 3:
            raise StreamError(f"it has a {record.name}, and is of version {self.version}")
        taker = TAKERS.get(record)
        if taker:
            taker(self, body)

    def take_pv_info(self, body: memoryview) -> None:
        _check_size("X86_PV_INFO", body, PV_INFO.size)
        self.width, levels, *reserved = PV_INFO.unpack(body)
        if LEVELS.get(self.width) != levels or any(reserved):
            raise StreamError(f"it is of a PV domain of {8 * self.width} bits and {levels} levels")

    def take_p2m_frames(self, body: memoryview) -> None:
        if not self.width:
            raise StreamError("it has X86_PV_P2M_FRAMES before X86_PV_INFO")
        if len(body) < P2M_RANGE.size:
            raise StreamError("its X86_PV_P2M_FRAMES is too short")
        start, end = P2M_RANGE.unpack(body[: P2M_RANGE.size])
        per_frame = PAGE_SIZE // self.width
        frames = range(start // per_frame, end // per_frame + 1)
        if start > end or len(body) != P2M_RANGE.size + 8 * len(frames):
            raise StreamError(f"its X86_PV_P2M_FRAMES for pfns {start:#x} to {end:#x} is no list")
        pfns = struct.unpack(f"<{len(frames)}Q", body[P2M_RANGE.size :])
        self.p2m_frames.update(zip(frames, pfns, strict=True))
        self.max_pfn = max(self.max_pfn, end)

    def take_pages(self, body: memoryview) -> None:
        if len(body) <= COUNT.size:
            raise StreamError("it has a PAGE_DATA without pages")
        count, zero = COUNT.unpack(body[: COUNT.size])
        at = COUNT.size + 8 * count
        if zero or at > len(body):
            raise StreamError(f"a PAGE_DATA of {len(body)} bytes has not {count} pages")
        for number in struct.unpack(f"<{count}Q", body[COUNT.size : at]):
            pfn, kind = number & PFN_MASK, number >> TYPE_SHIFT
            if number != kind << TYPE_SHIFT | pfn:
                raise StreamError(f"the pfn {number:#x} has a reserved bit")
            if kind in NOTHING:
                self.pages.data.pop(pfn, None)
                self.pages.kinds.pop(pfn, None)
                continue
            if kind == PFINFO_XALLOC:
                kind, page = PFINFO_NOTAB, memoryview(ZEROED)
            else:
                page, at = body[at : at + PAGE_SIZE], at + PAGE_SIZE
                if len(page) < PAGE_SIZE:
                    raise StreamError(f"the page of pfn {pfn:#x} is not there")
            self._add_page(pfn, kind, page)
        if at != len(body):
            raise StreamError("a PAGE_DATA has more data than pages")

    def _add_page(self, pfn: int, kind: int, page: memoryview) -> None:
        is_table = kind & PFINFO_LTABTYPE_MASK in TABLES
        if kind != PFINFO_NOTAB and not is_table:
            raise StreamError(f"pfn {pfn:#x} has the type {kind:#x}, which does not exist")
        if is_table and self.kind is not Kind.PV:
            raise StreamError(f"pfn {pfn:#x} is a page table of a PV domain's")
        self.pages.data[pfn] = page
        if is_table:
            self.pages.kinds[pfn] = kind
        else:
            self.pages.kinds.pop(pfn, None)

    def _take_vcpu(self, name: str, body: memoryview) -> None:
        if len(body) < VCPU.size:
            raise StreamError("a record of a vcpu is too short")
        number, zero = VCPU.unpack(body[: VCPU.size])
        if zero:
            raise StreamError(f"a record of vcpu {number} has a reserved bit")
        if len(body) > VCPU.size:  # old senders made empty ones
            vcpu = self.vcpus.setdefault(number, PvVcpuState(b""))
            setattr(vcpu, name, body[VCPU.size :])

    def take_basic(self, body: memoryview) -> None:
        self._take_vcpu("basic", body)

    def take_extended(self, body: memoryview) -> None:
        self._take_vcpu("extended", body)

    def take_msrs(self, body: memoryview) -> None:
        self._take_vcpu("msrs", body)

    def check_xsave(self, body: memoryview) -> None:
        """The area repeats what the other registers have of x87 and SSE, which is all there is."""
        at = VCPU.size
        if len(body) > at and (len(body) < at + XCRS.size or XCRS.unpack_from(body, at)[1] & ~SSE):
            raise StreamError("its vcpus have state of XSAVE's, which the CPU here lacks")

    def refuse_checkpoint(self, body: memoryview) -> None:
        raise StreamError("it has checkpoints, as of Remus: not the domain as a whole")

    # What they come to.

    def result(self) -> Saved:
        """The domain; StreamError: something of it is missing."""
        for record, size in POLICIES.items():
            if len(self.bodies.get(record, b"")) % size.size:
                raise StreamError(f"its {record.name} is no list")
        return Saved(
            self._pv() if self.kind is Kind.PV else self._hvm(),
            self.pages,
            self._tsc(),
            self.bodies.get(Record.X86_CPUID_POLICY, b""),
            self.bodies.get(Record.X86_MSR_POLICY, b""),
        )

    def _body(self, record: Record) -> memoryview:
        if record not in self.bodies:
            raise StreamError(f"it has no {record.name}")
        return self.bodies[record]

    def _tsc(self) -> TscInfo | None:
        body = self.bodies.get(Record.X86_TSC_INFO)
        if body is None:
            return None
        _check_size("X86_TSC_INFO", body, TSC_INFO.size)
        *fields, zero = TSC_INFO.unpack(body)
        if zero:
            raise StreamError("its X86_TSC_INFO has a reserved bit")
        return TscInfo(*fields)

    def _pv(self) -> PvState:
        self._body(Record.X86_PV_INFO)
        shared_info = self._body(Record.SHARED_INFO)
        _check_size("SHARED_INFO", shared_info, SHARED_INFO_SIZE)
        if sorted(self.p2m_frames) != list(range(len(self.p2m_frames))) or not self.p2m_frames:
            raise StreamError("its X86_PV_P2M_FRAMES have a gap")
        if not self.vcpus.get(0, PvVcpuState(b"")).basic:
            raise StreamError("it has no registers of vcpu 0")
        frames = [self.p2m_frames[n] for n in range(len(self.p2m_frames))]
        return PvState(self.width, frames, self.max_pfn, shared_info, self.vcpus)

    def _hvm(self) -> HvmState:
        context, body = self._body(Record.HVM_CONTEXT), self._body(Record.HVM_PARAMS)
        if len(body) < COUNT.size:
            raise StreamError("its HVM_PARAMS are too short")
        count, zero = COUNT.unpack(body[: COUNT.size])
        if zero or len(body) != COUNT.size + count * PARAM.size:
            raise StreamError(f"its HVM_PARAMS are not {count} parameters")
        return HvmState(context, dict(PARAM.iter_unpack(body[COUNT.size :])))


PV_ONLY: Final = (Kind.PV,)
HVM_ONLY: Final = (Kind.HVM,)
ONLY: Final = {
    **dict.fromkeys((Record.X86_PV_INFO, Record.X86_PV_P2M_FRAMES, Record.SHARED_INFO), PV_ONLY),
    **dict.fromkeys((Record.X86_PV_VCPU_BASIC, Record.X86_PV_VCPU_EXTENDED), PV_ONLY),
    **dict.fromkeys((Record.X86_PV_VCPU_XSAVE, Record.X86_PV_VCPU_MSRS), PV_ONLY),
    **dict.fromkeys((Record.HVM_CONTEXT, Record.HVM_PARAMS), HVM_ONLY),
}
ONCE: Final = frozenset(
    {
        Record.X86_PV_INFO,
        Record.SHARED_INFO,
        Record.X86_TSC_INFO,
        Record.HVM_CONTEXT,
        Record.HVM_PARAMS,
        Record.STATIC_DATA_END,
        Record.X86_CPUID_POLICY,
        Record.X86_MSR_POLICY,
    }
)
IN_VERSION_3: Final = frozenset(
    {Record.STATIC_DATA_END, Record.X86_CPUID_POLICY, Record.X86_MSR_POLICY}
)
Taker = Callable[[Reading, memoryview], None]
TAKERS: Final[dict[Record, Taker]] = {
    Record.PAGE_DATA: Reading.take_pages,
    Record.X86_PV_INFO: Reading.take_pv_info,
    Record.X86_PV_P2M_FRAMES: Reading.take_p2m_frames,
    Record.X86_PV_VCPU_BASIC: Reading.take_basic,
    Record.X86_PV_VCPU_EXTENDED: Reading.take_extended,
    Record.X86_PV_VCPU_MSRS: Reading.take_msrs,
    Record.X86_PV_VCPU_XSAVE: Reading.check_xsave,
    Record.CHECKPOINT: Reading.refuse_checkpoint,
    Record.CHECKPOINT_DIRTY_PFN_LIST: Reading.refuse_checkpoint,
}


def read(data: memoryview) -> tuple[Saved, memoryview]:
    """Read a domain's stream, from its first header on; and what comes after it. StreamError."""
    kind, version, rest = read_headers(data)
    reading = Reading(kind, version)
    for record, body in read_records(rest):
        if record is Record.END:
            rest = body
        else:
            reading.take(record, body)
    return reading.result(), rest


def _check_size(name: str, body: memoryview, size: int) -> None:
    if len(body) != size:
        raise StreamError(f"its {name} has {len(body)} bytes, not {size}")


def words(data: Data, width: int) -> memoryview[int]:
    """Unsigned longs of a guest of this width."""
    whole = memoryview(data).cast("B")
    return whole.cast("Q") if width == 8 else whole.cast("I")
