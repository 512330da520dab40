"""What Xen and a domain share: the event bitmaps, each vcpu's vcpu_info, the bits in them.

Everything follows the guest's width. A vcpu's vcpu_info lies in the shared_info page until
VCPUOP_register_vcpu_info moves it; `Vcpu.info` says where it is.

Header: public/xen.h (struct shared_info, struct vcpu_info)
In Xen: include/xen/shared.h, include/xen/guest_atomics.h
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.layout import Struct
from xenemu.abi.xen import shared_info, vcpu_info
from xenemu.hv.memory import Memory
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.x86.paging import PAGE_SHIFT, Maddr

VCPU_INFO_SIZE: Final = vcpu_info.sizeof(8)  # the same in both widths
# `event_pending` runs after every hypercall, and relies on these two being bytes 0 and 1.
UPCALL_PENDING: Final = vcpu_info.offsetof("evtchn_upcall_pending", 8)
UPCALL_MASK: Final = vcpu_info.offsetof("evtchn_upcall_mask", 8)


def _offsets(struct: type[Struct]) -> dict[int, dict[str, int]]:
    """Where the fields of a struct are, by width and name."""
    return {width: struct.layout(width).offsets for width in (4, 8)}


_SHARED_INFO: Final = _offsets(shared_info)
_VCPU_INFO: Final = _offsets(vcpu_info)


def test_bit(memory: Memory, base: int, bit: int) -> bool:
    """Whether `bit` is set in the little-endian bitmap at `base`."""
    return bool(memory.bytes[base + (bit >> 3)] >> (bit & 7) & 1)


def test_and_set_bit(memory: Memory, base: int, bit: int) -> bool:
    """Set `bit` in the bitmap at `base`; return what it was."""
    maddr, mask = base + (bit >> 3), 1 << (bit & 7)
    old = memory.bytes[maddr]
    if old & mask:
        return True
    memory.bytes[maddr] = old | mask
    if memory.code[maddr >> PAGE_SHIFT]:
        memory.stale_code.add(maddr >> PAGE_SHIFT)
    return False


def test_and_clear_bit(memory: Memory, base: int, bit: int) -> bool:
    """Clear `bit` in the bitmap at `base`; return what it was."""
    maddr, mask = base + (bit >> 3), 1 << (bit & 7)
    old = memory.bytes[maddr]
    if not old & mask:
        return False
    memory.bytes[maddr] = old & ~mask
    if memory.code[maddr >> PAGE_SHIFT]:
        memory.stale_code.add(maddr >> PAGE_SHIFT)
    return True


def field(domain: Domain, name: str) -> Maddr:
    """The machine address of a field of shared_info."""
    return Maddr((domain.shared_info << PAGE_SHIFT) + _SHARED_INFO[domain.shared_info_width][name])


def vcpu_field(domain: Domain, vcpu: Vcpu, name: str) -> Maddr:
    """The machine address of a field of a vcpu's vcpu_info."""
    return Maddr(vcpu.info + _VCPU_INFO[domain.shared_info_width][name])


def event_pending(domain: Domain, vcpu: Vcpu) -> bool:
    """Whether an upcall is due: the vcpu has events pending and does not mask them."""
    ram, info = domain.memory.bytes, vcpu.info
    return ram[info] != 0 and ram[info + 1] == 0


def mark_events_pending(domain: Domain, vcpu: Vcpu) -> bool:
    """Set the vcpu's pending byte; return whether it was clear, so that the vcpu needs a kick."""
    raised = not test_and_set_bit(domain.memory, vcpu.info + UPCALL_PENDING, 0)
    vcpu.upcall_raised |= raised
    return raised


def set_upcall_mask(domain: Domain, vcpu: Vcpu, masked: bool) -> None:
    """Mask or unmask a vcpu's upcalls."""
    domain.memory.write_uint(Maddr(vcpu.info + UPCALL_MASK), 1, int(masked))
