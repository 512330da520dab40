"""Physical device operations, as a domU without devices has them.

Two kinds are left: I/O privilege, which Xen emulates, and questions about interrupts, which the
domain does not have.

In Xen: arch/x86/physdev.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EBUSY, EINVAL, ENODEV, ENOSPC, ENOSYS, EPERM
from xenemu.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    NR_GSIS,
    NR_PIRQS,
    PHYSDEVOP_IRQ_UNMASK_NOTIFY,
    PHYSDEVOP_alloc_irq_vector,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_dbgp_op,
    PHYSDEVOP_eoi,
    PHYSDEVOP_free_irq_vector,
    PHYSDEVOP_get_free_pirq,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_manage_pci_add,
    PHYSDEVOP_manage_pci_add_ext,
    PHYSDEVOP_manage_pci_remove,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_pci_device_remove,
    PHYSDEVOP_pci_device_reset,
    PHYSDEVOP_pci_mmcfg_reserved,
    PHYSDEVOP_pirq_eoi_gmfn_v1,
    PHYSDEVOP_pirq_eoi_gmfn_v2,
    PHYSDEVOP_prepare_msix,
    PHYSDEVOP_release_msix,
    PHYSDEVOP_restore_msi,
    PHYSDEVOP_restore_msi_ext,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    XENIRQSTAT_needs_eoi,
    physdev_eoi,
    physdev_get_free_pirq,
    physdev_irq_status_query,
    physdev_map_pirq,
    physdev_pirq_eoi_gmfn,
    physdev_set_iobitmap,
    physdev_set_iopl,
    physdev_setup_gsi,
    physdev_unmap_pirq,
)
from xenemu.abi.physdev import physdev_op as physdev_op_t
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, PV, Hypercall, SubOps
from xenemu.hv.foreign import domain_by_any_id
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.pv.state import pv
from xenemu.x86.paging import Mfn


class PhysdevOps(SubOps):
    """Sub-operations that a PVH guest, which has no pirqs, does not have at all."""

    def __call__(self, current: Current, command: int, pointer: int) -> int | None:
        if current.domain.p2m is not None:
            raise XenError(ENOSYS, "a PVH guest has no physical interrupts")
        return super().__call__(current, command, pointer)


ops = PhysdevOps("physdev_op")

MAX_PORTS: Final = 65536
FIRST_FREE_GSI: Final = 16  # those below are the ISA bus's
HARDWARE: Final = "only the hardware domain has hardware"
COMPAT_COMMANDS: Final = range(PHYSDEVOP_irq_status_query, PHYSDEVOP_free_irq_vector + 1)


@ops.sub(PHYSDEVOP_IRQ_UNMASK_NOTIFY)
def irq_unmask_notify(current: Current, pointer: int) -> None:
    """Look at all interrupts that wait to be unmasked: no interrupt does."""


@ops.sub(PHYSDEVOP_free_irq_vector)
def free_irq_vector(current: Current, pointer: int) -> None:
    """Do nothing: vectors are Xen's own business."""


@ops.sub(PHYSDEVOP_eoi, physdev_eoi)
def eoi(current: Current, op: physdev_eoi) -> None:
    """Do nothing: no interrupt waits for it. EINVAL: the domain has no such interrupt."""
    if op.irq not in current.domain.events.free_pirqs_given:
        raise XenError(EINVAL, f"pirq {op.irq} is not bound")


@ops.sub(PHYSDEVOP_irq_status_query, physdev_irq_status_query, copy_back=True)
def irq_status_query(current: Current, op: physdev_irq_status_query) -> None:
    """Say that an interrupt needs an EOI, as Xen says of all; EINVAL: the number is too large."""
    if op.irq >= NR_PIRQS:
        raise XenError(EINVAL, f"there is no pirq {op.irq}")
    op.flags = XENIRQSTAT_needs_eoi


@ops.sub(PHYSDEVOP_pirq_eoi_gmfn_v2, physdev_pirq_eoi_gmfn)
def pirq_eoi_gmfn_v2(current: Current, op: physdev_pirq_eoi_gmfn) -> None:
    """Take a page for the marks of interrupts that need an EOI; no interrupt ever will.

    EINVAL: the page is not the guest's, or not writable. EBUSY: there is a page already.
    """
    domain = current.domain
    try:
        domain.frames.get_page_and_type(op.gmfn, domain.domid, PGT_writable_page)
    except XenError as error:
        raise XenError(EINVAL, error.reason) from None
    if domain.events.pirq_eoi_page is not None:
        domain.frames.put_page_and_type(op.gmfn)
        raise XenError(EBUSY, "the domain has a page for EOI marks")
    domain.events.pirq_eoi_page = Mfn(op.gmfn)


@ops.sub(PHYSDEVOP_pirq_eoi_gmfn_v1, physdev_pirq_eoi_gmfn)
def pirq_eoi_gmfn_v1(current: Current, op: physdev_pirq_eoi_gmfn) -> None:
    """The same, with interrupts unmasked by Xen."""
    pirq_eoi_gmfn_v2(current, op)


@ops.sub(PHYSDEVOP_set_iopl, physdev_set_iopl)
def set_iopl(current: Current, op: physdev_set_iopl) -> None:
    """Set the I/O privilege level that Xen shows and emulates; EINVAL: over 3."""
    if op.iopl > 3:
        raise XenError(EINVAL, f"there is no I/O privilege level {op.iopl}")
    pv(current).iopl = op.iopl


@ops.sub(PHYSDEVOP_set_iobitmap, physdev_set_iobitmap)
def set_iobitmap(current: Current, op: physdev_set_iobitmap) -> None:
    """Set the address of the map of ports that user mode may use; EINVAL: over 65536 ports."""
    if op.nr_ports > MAX_PORTS:
        raise XenError(EINVAL, f"a map of {op.nr_ports} ports")
    state = pv(current)
    state.io_bitmap = op.bitmap
    state.io_bitmap_ports = op.nr_ports


def _refuse_pirq(current: Current, domid: int) -> None:
    """ESRCH: no such domain; EPERM: only a device model may."""
    domain_by_any_id(current, domid)
    raise XenError(EPERM, "a domU without devices maps no interrupts")


@ops.sub(PHYSDEVOP_map_pirq, physdev_map_pirq)
def map_pirq(current: Current, op: physdev_map_pirq) -> None:
    _refuse_pirq(current, op.domid)


@ops.sub(PHYSDEVOP_unmap_pirq, physdev_unmap_pirq)
def unmap_pirq(current: Current, op: physdev_unmap_pirq) -> None:
    _refuse_pirq(current, op.domid)


@ops.sub(PHYSDEVOP_get_free_pirq, physdev_get_free_pirq, copy_back=True)
def get_free_pirq(current: Current, op: physdev_get_free_pirq) -> None:
    """Give out a pirq, which stands for nothing; ENOSPC: all are given."""
    given = current.domain.events.free_pirqs_given
    lines = range(FIRST_FREE_GSI, NR_GSIS if op.type == MAP_PIRQ_TYPE_GSI else 0)
    for pirq in (*lines, *range(NR_PIRQS - 1, NR_GSIS - 1, -1)):
        if pirq not in given:
            given.add(pirq)
            op.pirq = pirq
            return
    raise XenError(ENOSPC, f"all {len(given)} pirqs are given out")


@ops.sub(PHYSDEVOP_setup_gsi, physdev_setup_gsi, answer=EPERM, note=HARDWARE)
def setup_gsi(current: Current, op: physdev_setup_gsi) -> None:
    """Refuse: EINVAL: there is no such GSI; EPERM."""
    if not 0 <= op.gsi < NR_GSIS:
        raise XenError(EINVAL, f"there is no GSI {op.gsi}")
    raise XenError(EPERM, HARDWARE)


# With the bytes that Xen reads before it refuses (of apic_read and apic_write the 32-bit ones).
for _command, _name, _size in (
    (PHYSDEVOP_apic_read, "apic_read", 12),
    (PHYSDEVOP_apic_write, "apic_write", 12),
    (PHYSDEVOP_alloc_irq_vector, "alloc_irq_vector", 8),
    (PHYSDEVOP_manage_pci_add, "manage_pci_add", 2),
    (PHYSDEVOP_manage_pci_add_ext, "manage_pci_add_ext", 16),
    (PHYSDEVOP_manage_pci_remove, "manage_pci_remove", 2),
    (PHYSDEVOP_pci_mmcfg_reserved, "pci_mmcfg_reserved", 0),
    (PHYSDEVOP_pci_device_add, "pci_device_add", 12),
    (PHYSDEVOP_pci_device_remove, "pci_device_remove", 4),
    (PHYSDEVOP_dbgp_op, "dbgp_op", 0),
    (PHYSDEVOP_prepare_msix, "prepare_msix", 4),
    (PHYSDEVOP_release_msix, "release_msix", 4),
):
    ops.answer(_command, _name, EPERM, HARDWARE, copies=_size)
for _command, _name, _size in (
    (PHYSDEVOP_restore_msi, "restore_msi", 2),
    (PHYSDEVOP_restore_msi_ext, "restore_msi_ext", 4),
):
    ops.answer(_command, _name, ENODEV, "the machine has no PCI device", copies=_size)
ops.answer(PHYSDEVOP_pci_device_reset, "pci_device_reset", ENOSYS, "came with Xen 4.20")


def compat(current: Current, pointer: int) -> int | None:
    """The oldest form: the command is in the struct, before its argument."""
    command = current.read_uint(pointer, 4)
    if command not in COMPAT_COMMANDS:
        raise XenError(ENOSYS, f"the compat form has no command {command}")
    return ops(current, command, pointer + physdev_op_t.offsetof("u", current.vcpu.width))


physdev_op = Hypercall(Nr.physdev_op, "physdev_op", ALL, (INT, PTR), ops)
physdev_op_compat = Hypercall(Nr.physdev_op_compat, "physdev_op_compat", PV, (PTR,), compat)
