"""What descriptors a PV guest may have in its GDT and LDT.

In Xen: arch/x86/pv/descriptor-tables.c (check_descriptor), include/asm-x86/guest_access.h.
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    FIRST_RESERVED_GDT_ENTRY,
    FLAT_RING1_CS,
    FLAT_RING3_CS64,
)
from xenemu.x86.segment import (
    DPL,
    DPL_SHIFT,
    HYPERVISOR_COMPAT_VIRT_START,
    PRESENT,
    SEL_RPL,
    SEL_TI,
    TYPE,
    TYPE_CALL_GATE,
    L,
    S,
    base,
    dpl,
    limit,
)


def gate_selector_okay(selector: int, width: int) -> bool:
    """Whether a guest's gate may lead to `selector`: its own entry, or Xen's flat kernel code."""
    flat = FLAT_RING3_CS64 if width == 8 else FLAT_RING1_CS
    own = selector >> 3 < FIRST_RESERVED_GDT_ENTRY or bool(selector & SEL_TI)
    return own or selector == flat


def fixup_guest_selector(selector: int, width: int) -> int:
    """A code or stack selector that Xen keeps for later: no more privileged than the kernel."""
    ring = 3 if width == 8 else 1
    return selector if selector & SEL_RPL >= ring else selector & ~SEL_RPL | ring


def check_descriptor(descriptor: int, width: int) -> int | None:
    """Apply Xen's rules to one GDT or LDT entry of a PV guest with longs of `width` bytes.

    Returns the descriptor to store, or None if the guest may not have such an entry: a system
    segment, a gate into Xen, 64-bit code in a 32-bit guest. If the descriptor's DPL was below the
    guest kernel's ring, it is raised to that ring. A call gate's DPL becomes 0, so that its use
    faults and is emulated.
    """
    low, high = descriptor & 0xFFFFFFFF, descriptor >> 32
    if not high & PRESENT:
        return descriptor
    ring = max(dpl(high), 3 if width == 8 else 1)
    raised = high & ~DPL | ring << DPL_SHIFT
    if high & S:
        if width == 4:
            if high & L:
                return None
            if base(descriptor) == 0 and limit(descriptor) >= HYPERVISOR_COMPAT_VIRT_START:
                # Older PAE guests stop below the M2P of their day: let them reach this one.
                low, raised = low | 0xFFFF, raised | 0xF0000
        return raised << 32 | low
    if not high & TYPE:  # the second half of a 64-bit call gate
        return descriptor
    if high & TYPE != TYPE_CALL_GATE or not gate_selector_okay(low >> 16, width):
        return None
    if high & (0xFF if width == 8 else 0xE0):
        return None
    selector = (low >> 16) & ~SEL_RPL | ring
    return (high & ~DPL) << 32 | selector << 16 | low & 0xFFFF


def descriptor_refusal(descriptor: int, width: int) -> str:
    """Say what is wrong with a descriptor that `check_descriptor` does not let through."""
    low, high = descriptor & 0xFFFFFFFF, descriptor >> 32
    what = f"descriptor {descriptor:#018x} is not one a guest may have: "
    if high & S:
        return what + "64-bit code in a 32-bit guest"
    if high & TYPE != TYPE_CALL_GATE:
        return (
            what + f"of the system's types a guest has call gates alone, not {high >> 8 & 0xF:#x}"
        )
    if not gate_selector_okay(low >> 16, width):
        return what + f"its gate leads to {low >> 16:#x}, which is Xen's"
    return what + "its gate has parameters, or reserved bits"
