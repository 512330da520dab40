"""What building a PV domain and building a PVH domain have in common.

In Xen: tools/libs/guest/xg_dom_core.c, tools/libs/light/libxl_dom.c
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from xenemu.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenemu.abi.xen import XEN_LEGACY_MAX_VCPUS
from xenemu.errors import ImageError
from xenemu.hv import event_channel, grant_table
from xenemu.hv.clock import update_wallclock, write_time
from xenemu.hv.shared_info import VCPU_INFO_SIZE
from xenemu.hv.state.domain import DOM0, Domain
from xenemu.hv.state.schedule import SHARED_SLICE_NS
from xenemu.hv.state.vcpu import RunState
from xenemu.image import compression
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_MASK, PAGE_SHIFT, Maddr, Mfn

# xl's slack of 1 MiB above the domain's memory, and frames for grant tables and the like.
MAX_PAGES_SLACK = (1 << 20) >> PAGE_SHIFT
XEN_FRAMES = 512

FIRST_DOMID = 1  # of the first domU on a new host
DEFAULT_WALLCLOCK_NS = 1_767_225_600 * 1_000_000_000  # 2026-01-01 00:00:00 UTC


Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Module:
    """A file that the guest finds in its memory; `cmdline` is None if it has none."""

    data: Data
    cmdline: bytes | None = None


class Where(NamedTuple):
    """Where a kernel wants to be: virtual addresses if it is entered paged, else physical ones."""

    start: int
    end: int
    entry: int


@dataclass(frozen=True)
class DomainConfig:
    """What a domain is built from, besides its kernel."""

    memory: int  # bytes
    cmdline: bytes = b""
    initrd: Data = b""
    domid: int = FIRST_DOMID
    name: str = "guest"
    uuid: bytes = bytes(range(16))
    vcpus: int = 1  # online at first, as the xenstore and ACPI tell
    maxvcpus: int | None = None  # how many there are; None: those that are online
    maxmem: int | None = None  # bytes that ballooning can come to; None: `memory`
    wallclock_ns: int = DEFAULT_WALLCLOCK_NS
    debug_xen: bool = False  # what a debug build of Xen does to hypercalls' arguments
    rng_seed: int = 0  # of what RDRAND and RDSEED read, and setup_data has; 64 bits
    slice_ns: int = SHARED_SLICE_NS  # of a vcpu while others could run, too
    schedule_seed: int | None = None  # draws the order in which vcpus run; None: by turns
    subarch: int | None = None  # hardware_subarch of a boot_params, 32 bits; None: as it is
    modules: tuple[Module, ...] = ()  # after the initrd; only a PVH guest can have them
    efi_root: Mapping[str, Data] | None = None  # files that EFI has, by path; a directory ends in /

    @property
    def all_vcpus(self) -> int:
        """How many vcpus there are, online or not."""
        return self.vcpus if self.maxvcpus is None else self.maxvcpus

    @property
    def most_memory(self) -> int:
        """Bytes that the domain can come to have: memory/static-max."""
        return self.memory if self.maxmem is None else self.maxmem

    def check_cmdline(self, who: str, longest: int) -> None:
        """ImageError if the command line has more bytes than `who` takes, without its end."""
        if len(self.cmdline) > longest:
            raise ImageError(
                f"the command line has {len(self.cmdline)} bytes; {who} takes at most {longest}"
            )


def pages(size: int) -> int:
    """How many pages `size` bytes take."""
    return (size + PAGE_MASK) >> PAGE_SHIFT


def vcpu_info_at(vcpu_id: int, shared_info: Mfn, dummy: Mfn) -> Maddr:
    """Where a vcpu's vcpu_info is at first; vcpus without room in shared_info have a dummy."""
    if vcpu_id < XEN_LEGACY_MAX_VCPUS:
        return Maddr((shared_info << PAGE_SHIFT) + VCPU_INFO_SIZE * vcpu_id)
    return Maddr(dummy << PAGE_SHIFT)


def unpack_module(data: Data) -> Data:
    """Unpack a module that is gzip'd, as libxenguest does with all; others stay as they are.

    In Xen: xc_dom_build_module. DIVERGES: one that does not unpack to just the size that its
    last four bytes say stays as it is, too; Xen would hand over the part that fits.
    """
    view = memoryview(data)
    if compression.detect(view) != "gzip":
        return data
    try:
        return compression.decompress(view, "gzip", int.from_bytes(view[-4:], "little"))
    except ImageError:
        return data


def give_rings(domain: Domain) -> None:
    """Give the domain ports that wait for dom0, for its two rings, and let dom0 map these."""
    for ref, ring in (
        (GNTTAB_RESERVED_CONSOLE, domain.console),
        (GNTTAB_RESERVED_XENSTORE, domain.xenstore),
    ):
        grant_table.seed(domain, ref, domain.mfn_to_gfn(ring.mfn))
    for ring in (domain.xenstore, domain.console):
        ring.port = event_channel.alloc_unbound(domain, DOM0)


def make_ready(domain: Domain) -> None:
    """Let vcpu 0 run, at the virtual time 0, and tell the guest the time."""
    boot = domain.vcpus[0]
    boot.online = boot.initialised = True
    boot.runstate = RunState.RUNNING
    for vcpu in domain.vcpus:
        write_time(domain, vcpu, 0)
    update_wallclock(domain)
