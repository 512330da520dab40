"""Hypercalls that Xen 4.17, as it comes, refuses to every unprivileged domain.

In Xen: include/xsm/dummy.h and each hypercall's own check.
"""

from __future__ import annotations

from xenemu.abi.errno import ENOSYS, EOPNOTSUPP, EPERM
from xenemu.abi.xen import Nr
from xenemu.hv.dispatch import ALL, INT, PTR, PV, Hypercall

ONE_POINTER = (PTR,)
COMMAND_AND_POINTER = (INT, PTR)

REFUSED = [
    Hypercall(Nr.xsm_op, "xsm_op", ALL, ONE_POINTER, None, ENOSYS, "FLASK is not built in"),
    Hypercall(
        Nr.xenoprof_op, "xenoprof_op", PV, COMMAND_AND_POINTER, None, ENOSYS, "xenoprof is off"
    ),
    Hypercall(Nr.sysctl, "sysctl", ALL, ONE_POINTER, None, EPERM, "for the control domain"),
    Hypercall(Nr.domctl, "domctl", ALL, ONE_POINTER, None, EPERM, "for the control domain"),
    Hypercall(
        Nr.kexec_op, "kexec_op", PV, COMMAND_AND_POINTER, None, EPERM, "for the hardware domain"
    ),
    Hypercall(Nr.tmem_op, "tmem_op", ALL, ONE_POINTER, None, ENOSYS, "removed in Xen 4.13"),
    Hypercall(
        Nr.argo_op, "argo_op", ALL, COMMAND_AND_POINTER, None, ENOSYS, "Argo is not built in"
    ),
    Hypercall(
        Nr.xenpmu_op, "xenpmu_op", ALL, COMMAND_AND_POINTER, None, EOPNOTSUPP, "the VPMU is off"
    ),
    Hypercall(
        Nr.dm_op, "dm_op", ALL, COMMAND_AND_POINTER, None, EPERM, "for a device model's domain"
    ),
    Hypercall(
        Nr.hypfs_op, "hypfs_op", ALL, COMMAND_AND_POINTER, None, EPERM, "for the control domain"
    ),
    Hypercall(Nr.mca, "mca", PV, ONE_POINTER, None, EPERM, "for the control domain"),
    Hypercall(
        Nr.paging_domctl_cont,
        "paging_domctl_cont",
        ALL,
        ONE_POINTER,
        None,
        EPERM,
        "a continuation of domctl",
    ),
]
