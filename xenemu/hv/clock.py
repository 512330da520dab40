"""The time that a guest reads for itself: vcpu_time_info and the wall clock.

The TSC counts virtual nanoseconds. So system time and TSC are the same number for ever, on every
vcpu. Still, a record is rewritten when another second has begun, as Xen does after it has
calibrated its clocks. Some guests need that: those that multiply in 32 bits, and those that wait
for the next version.

XEN_PVCLOCK_TSC_STABLE_BIT says that readings on different vcpus need no correction. That is true
here, so the bit is always set. Xen 4.17 sets it only with `clocksource=tsc`.

In Xen: arch/x86/time.c (__update_vcpu_system_time, update_secondary_system_time)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from xenemu.abi.vcpu import XEN_PVCLOCK_TSC_STABLE_BIT
from xenemu.abi.xen import vcpu_time_info
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.shared_info import field, vcpu_field
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.x86.paging import Maddr

TSC_HZ: Final = 1_000_000_000
# ns = (ticks << 1) * 2^31 >> 32: the multiplier has 32 bits, so that 1.0 itself does not fit.
TSC_TO_SYSTEM_MUL: Final = 1 << 31
TSC_SHIFT: Final = 1
EPOCH_NS: Final = 1_000_000_000  # how long a record is the newest
VERSION_SIZE: Final = 4  # it comes first
WC_SEC_HI_32: Final = 24  # offset in a 32-bit guest's shared_info.arch


def time_info(version: int, now_ns: int) -> vcpu_time_info:
    """A complete record of the time `now_ns`; `version` is that of the record before it."""
    return vcpu_time_info(
        version=(version | 1) + 1,
        pad0=0,
        tsc_timestamp=now_ns,
        system_time=now_ns,
        tsc_to_system_mul=TSC_TO_SYSTEM_MUL,
        tsc_shift=TSC_SHIFT,
        flags=XEN_PVCLOCK_TSC_STABLE_BIT,
        pad1=bytes(2),
    )


def write_time(domain: Domain, vcpu: Vcpu, now_ns: int) -> None:
    """Write a vcpu's time record into its vcpu_info.

    The version is odd while a record is being written. No vcpu runs meanwhile, so a guest sees only
    even versions.
    """
    maddr = vcpu_field(domain, vcpu, "time")
    version = domain.memory.read_uint(maddr, VERSION_SIZE)
    domain.memory.write(maddr, time_info(version, now_ns).pack(domain.shared_info_width))


def refresh_time(current: Current) -> None:
    """The current vcpu gets the CPU, or goes on: rewrite its record if a newer one is due."""
    domain, vcpu = current.domain, current.vcpu
    newest = _newest(_epoch(current), domain.shared_info_width)
    record = domain.memory.read(vcpu_field(domain, vcpu, "time"), len(newest))
    if record[VERSION_SIZE:] != newest[VERSION_SIZE:]:
        update_time(current, vcpu)


@lru_cache(maxsize=4)  # it is asked for at each turn
def _newest(now_ns: int, width: int) -> bytes:
    return time_info(0, now_ns).pack(width)


def update_time(current: Current, vcpu: Vcpu) -> None:
    """Rewrite a vcpu's record, whether or not it is the newest, and the second one."""
    write_time(current.domain, vcpu, _epoch(current))
    update_secondary_time(current, vcpu)


def update_secondary_time(current: Current, vcpu: Vcpu) -> None:
    """Copy a vcpu's record to the area that it registered, if that is mapped now."""
    if vcpu.time_area:
        record = vcpu_field(current.domain, vcpu, "time")
        try:
            current.write(
                vcpu.time_area, current.domain.memory.read(record, vcpu_time_info.sizeof(8))
            )
        except XenError:
            vcpu.areas_stale = True


def _epoch(current: Current) -> int:
    """When the present second began."""
    return current.cpu.now_ns // EPOCH_NS * EPOCH_NS


def update_wallclock(domain: Domain) -> None:
    """Write the wall clock at virtual time 0 into shared_info."""
    seconds, nanoseconds = divmod(domain.wallclock_ns, 1_000_000_000)
    write = domain.memory.write_uint
    version = domain.memory.read_uint(field(domain, "wc_version"), 4)
    write(field(domain, "wc_sec"), 4, seconds)
    write(field(domain, "wc_nsec"), 4, nanoseconds)
    write(_wc_sec_hi(domain), 4, seconds >> 32)
    write(field(domain, "wc_version"), 4, (version | 1) + 1)


def _wc_sec_hi(domain: Domain) -> Maddr:
    if domain.shared_info_width == 8:
        return field(domain, "wc_sec_hi")
    return Maddr(field(domain, "arch") + WC_SEC_HI_32)
