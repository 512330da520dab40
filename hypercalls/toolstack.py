"""What dom0 and its tools ask of Xen: refused to a domU, for the first reason that Xen finds.

Xen looks at the version of the interface, and looks for the domain in question. Only then it asks
whether the caller may make the call. The command itself does not matter.

In Xen: arch/x86/platform_hypercall.c, common/sysctl.c, common/domctl.c, common/dm.c,
arch/x86/mm/paging.c (do_paging_domctl_cont)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import E2BIG, EACCES, EINVAL, EOPNOTSUPP, EPERM
from xenemu.abi.xen import DOMID_INVALID, DOMID_IO, DOMID_SELF, Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Hypercall
from xenemu.hv.foreign import domain_by_any_id, remote_domain_by_id

XENPF_INTERFACE_VERSION: Final = 0x03000001
XEN_SYSCTL_INTERFACE_VERSION: Final = 0x15
XEN_DOMCTL_INTERFACE_VERSION: Final = 0x15
OP_SIZE: Final = 136  # of struct xen_platform_op and xen_sysctl, in both widths
DOMCTL_SIZE: Final = 144  # of struct xen_domctl, which names its domain before the union

XEN_DOMCTL_createdomain: Final = 1
XEN_DOMCTL_shadow_op: Final = 10
XEN_DOMCTL_assign_device: Final = 37
XEN_DOMCTL_test_assign_device: Final = 45
XEN_DOMCTL_deassign_device: Final = 47
XEN_DOMCTL_vm_event_op: Final = 56
XEN_DOMCTL_gdbsx_guestmemio: Final = 1000
NAMES_NO_DOMAIN: Final = frozenset({XEN_DOMCTL_createdomain, XEN_DOMCTL_gdbsx_guestmemio})
PSEUDO_DOMAINS: Final = {
    XEN_DOMCTL_assign_device: DOMID_IO,
    XEN_DOMCTL_deassign_device: DOMID_IO,
    XEN_DOMCTL_test_assign_device: DOMID_INVALID,
    XEN_DOMCTL_vm_event_op: DOMID_INVALID,
}

MAX_DM_OP_BUFS: Final = 2

FOR_HARDWARE: Final = "for the hardware domain"
FOR_CONTROL: Final = "for the control domain"
NO_DEVICE_MODEL: Final = "dom0 has no device model, nor has the caller rights to another's"


def refuse_platform_op(current: Current, pointer: int) -> int:
    """EFAULT; EACCES: another version of the interface; EPERM: this is a domU."""
    _check_version(current.read(pointer, OP_SIZE), "platform_op", XENPF_INTERFACE_VERSION)
    raise XenError(EPERM, FOR_HARDWARE)


def refuse_sysctl(current: Current, pointer: int) -> int:
    """EFAULT; EACCES: another version of the interface; EPERM: this is a domU."""
    _check_version(current.read(pointer, OP_SIZE), "sysctl", XEN_SYSCTL_INTERFACE_VERSION)
    raise XenError(EPERM, FOR_CONTROL)


def refuse_domctl(current: Current, pointer: int) -> int:
    """EFAULT; EACCES: another version of the interface; ESRCH: no such domain; EPERM."""
    op = current.read(pointer, DOMCTL_SIZE)
    _check_version(op, "domctl", XEN_DOMCTL_INTERFACE_VERSION)
    command = int.from_bytes(op[:4], "little")
    if command not in NAMES_NO_DOMAIN and PSEUDO_DOMAINS.get(command) != _domain_of(op):
        _check_domain(current, op)
    raise XenError(EPERM, FOR_CONTROL)


def refuse_paging_domctl_cont(current: Current, pointer: int) -> int:
    """EFAULT; EOPNOTSUPP: not the one domctl that Xen continues like that; ESRCH; EPERM."""
    op = current.read(pointer, DOMCTL_SIZE)
    command, version = (int.from_bytes(op[at : at + 4], "little") for at in (0, 4))
    if (command, version) != (XEN_DOMCTL_shadow_op, XEN_DOMCTL_INTERFACE_VERSION):
        raise XenError(EOPNOTSUPP, f"domctl {command} of version {version:#x} is not continued")
    _check_domain(current, op)
    raise XenError(EPERM, FOR_CONTROL)


def refuse_dm_op(current: Current, domid: int, count: int, buffers: int) -> int:
    """E2BIG: too many buffers; EFAULT; ESRCH; EPERM: oneself; EINVAL: dom0 is a PV domain."""
    if count > MAX_DM_OP_BUFS:
        raise XenError(E2BIG, f"{count} buffers: {MAX_DM_OP_BUFS} are allowed")
    current.read(buffers, count * 2 * current.vcpu.width)
    remote_domain_by_id(current, domid & 0xFFFF)
    raise XenError(EINVAL, NO_DEVICE_MODEL)


def _check_version(op: bytes, name: str, expected: int) -> None:
    version = int.from_bytes(op[4:8], "little")
    if version != expected:
        raise XenError(EACCES, f"{name} has version {expected:#x}, not {version:#x}")


def _domain_of(domctl: bytes) -> int:
    return int.from_bytes(domctl[8:10], "little")


def _check_domain(current: Current, domctl: bytes) -> None:
    """ESRCH: no such domain; DOMID_SELF does not count as one here."""
    domid = _domain_of(domctl)
    domain_by_any_id(current, DOMID_INVALID if domid == DOMID_SELF else domid)


platform_op = Hypercall(
    Nr.platform_op, "platform_op", ALL, (PTR,), refuse_platform_op, EPERM, FOR_HARDWARE
)
sysctl = Hypercall(Nr.sysctl, "sysctl", ALL, (PTR,), refuse_sysctl, EPERM, FOR_CONTROL)
domctl = Hypercall(Nr.domctl, "domctl", ALL, (PTR,), refuse_domctl, EPERM, FOR_CONTROL)
paging_domctl_cont = Hypercall(
    Nr.paging_domctl_cont,
    "paging_domctl_cont",
    ALL,
    (PTR,),
    refuse_paging_domctl_cont,
    EPERM,
    "a continuation of domctl",
)
dm_op = Hypercall(Nr.dm_op, "dm_op", ALL, (INT, INT, PTR), refuse_dm_op, EINVAL, NO_DEVICE_MODEL)
