"""Hypercalls that an ordinary Xen 4.17 refuses to every domU before it looks at anything.

In Xen: include/xsm/dummy.h and each hypercall's own check.
"""

from __future__ import annotations

from xenemu.abi.errno import ENOSYS, EOPNOTSUPP, EPERM
from xenemu.abi.pmu import xen_pmu_params
from xenemu.abi.xen import Nr
from xenemu.hv.dispatch import ALL, INT, PTR, PV, ULONG, Hypercall, Points, SubOps

ONE_POINTER = (PTR,)
COMMAND_AND_POINTER = (INT, PTR)

REFUSED = [
    Hypercall(Nr.xsm_op, "xsm_op", ALL, ONE_POINTER, None, ENOSYS, "Xen is built without FLASK"),
    Hypercall(
        Nr.xenoprof_op,
        "xenoprof_op",
        PV,
        COMMAND_AND_POINTER,
        None,
        ENOSYS,
        "Xen is built without Xenoprof",
    ),
    Hypercall(
        Nr.kexec_op, "kexec_op", PV, COMMAND_AND_POINTER, None, EPERM, "for the hardware domain"
    ),
    Hypercall(Nr.tmem_op, "tmem_op", ALL, ONE_POINTER, None, ENOSYS, "removed in Xen 4.13"),
    Hypercall(
        Nr.argo_op, "argo_op", ALL, COMMAND_AND_POINTER, None, ENOSYS, "Xen is built without Argo"
    ),
    Hypercall(
        Nr.xenpmu_op,
        "xenpmu_op",
        ALL,
        COMMAND_AND_POINTER,
        None,
        EOPNOTSUPP,
        "the VPMU is off",
        points=Points(1, xen_pmu_params),
        arguments=SubOps.arguments,
    ),
    Hypercall(
        Nr.hypfs_op,
        "hypfs_op",
        ALL,
        (INT, PTR, ULONG, PTR, ULONG),
        None,
        EPERM,
        "for the control domain",
    ),
    Hypercall(Nr.mca, "mca", PV, ONE_POINTER, None, EPERM, "for the control domain"),
]
