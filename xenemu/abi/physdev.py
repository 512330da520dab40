"""Physical device operations: commands and their arguments.

Header: public/physdev.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import HANDLE, S32, U8, U16, U32, ULONG, Struct, blob

PHYSDEVOP_IRQ_UNMASK_NOTIFY: Final = 4
PHYSDEVOP_irq_status_query: Final = 5
PHYSDEVOP_set_iopl: Final = 6
PHYSDEVOP_set_iobitmap: Final = 7
PHYSDEVOP_apic_read: Final = 8
PHYSDEVOP_apic_write: Final = 9
PHYSDEVOP_alloc_irq_vector: Final = 10
PHYSDEVOP_free_irq_vector: Final = 11
PHYSDEVOP_eoi: Final = 12
PHYSDEVOP_map_pirq: Final = 13
PHYSDEVOP_unmap_pirq: Final = 14
PHYSDEVOP_manage_pci_add: Final = 15
PHYSDEVOP_manage_pci_remove: Final = 16
PHYSDEVOP_pirq_eoi_gmfn_v1: Final = 17
PHYSDEVOP_restore_msi: Final = 19
PHYSDEVOP_manage_pci_add_ext: Final = 20
PHYSDEVOP_setup_gsi: Final = 21
PHYSDEVOP_get_free_pirq: Final = 23
PHYSDEVOP_pci_mmcfg_reserved: Final = 24
PHYSDEVOP_pci_device_add: Final = 25
PHYSDEVOP_pci_device_remove: Final = 26
PHYSDEVOP_restore_msi_ext: Final = 27
PHYSDEVOP_pirq_eoi_gmfn_v2: Final = 28
PHYSDEVOP_dbgp_op: Final = 29
PHYSDEVOP_prepare_msix: Final = 30
PHYSDEVOP_release_msix: Final = 31
PHYSDEVOP_pci_device_reset: Final = 32  # of Xen 4.20

MAP_PIRQ_TYPE_GSI: Final = 1

NR_GSIS: Final = 24  # of one IO-APIC
NR_PIRQS: Final = NR_GSIS + 32  # of a domU: extra_guest_irqs=32

XENIRQSTAT_needs_eoi: Final = 1 << 0
XENIRQSTAT_shared: Final = 1 << 1


class physdev_eoi(Struct, size=(4, 4)):
    """An interrupt has been handled."""

    irq: U32


class physdev_pirq_eoi_gmfn(Struct, size=(8, 4)):
    """A page in which Xen marks the interrupts that need an EOI."""

    gmfn: ULONG


class physdev_irq_status_query(Struct, size=(8, 8)):
    """What an interrupt needs; `flags` is OUT."""

    irq: U32
    flags: U32


class physdev_set_iopl(Struct, size=(4, 4)):
    """The vcpu's I/O privilege level."""

    iopl: U32


class physdev_set_iobitmap(Struct, size=(16, 8)):
    """The ports that the vcpu's user mode may use: a clear bit allows."""

    bitmap: HANDLE
    nr_ports: U32


class physdev_setup_gsi(Struct, size=(8, 8)):
    """How an interrupt line is wired."""

    gsi: S32
    triggering: U8
    polarity: U8


class physdev_get_free_pirq(Struct, size=(8, 8)):
    """A pirq that is not in use; `pirq` is OUT."""

    type: S32
    pirq: U32


class physdev_map_pirq(Struct, size=(40, 36)):
    """Map an interrupt to a pirq."""

    domid: U16
    type: S32
    index: S32
    pirq: S32
    bus: S32
    devfn: S32
    entry_nr: S32
    table_base: Annotated[bytes, blob(8, 8)]


class physdev_unmap_pirq(Struct, size=(8, 8)):
    """Undo map_pirq."""

    domid: U16
    pirq: S32


class physdev_op(Struct, size=(24, 16)):
    """The oldest form: a command and a union of its arguments."""

    cmd: U32
    u: Annotated[bytes, blob(16, 8, 12, 4)]
