"""What Xen says about itself, and which features it offers to this guest.

xenemu calls itself 4.17.7, because it models that interface. The build information is xenemu's own.

In Xen: common/kernel.c (do_xen_version), include/xsm/dummy.h (xsm_xen_version)
"""

from __future__ import annotations

from typing import Final

from xenemu import __version__
from xenemu.abi.arch_x86.xen import HYPERVISOR_VIRT_START
from xenemu.abi.errno import EINVAL, EPERM
from xenemu.abi.features import (
    XENFEAT_NR_SUBMAPS,
    XENFEAT_auto_translated_physmap,
    XENFEAT_pae_pgdir_above_4gb,
)
from xenemu.abi.version import (
    XEN_CAPABILITIES_INFO_LEN,
    XEN_CHANGESET_INFO_LEN,
    XEN_EXTRAVERSION_LEN,
    XEN_VERSION,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
    xen_compile_info,
    xen_feature_info,
    xen_platform_parameters,
)
from xenemu.abi.xen import Nr, VMASST_TYPE_pae_extended_cr3
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Hypercall, SubOps
from xenemu.x86.paging import PAGE_SIZE

ops = SubOps("xen_version")

EXTRAVERSION: Final = ".7"
CAPABILITIES: Final = (
    "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
)
COMPILE_DATE: Final = "Thu Jan  1 00:00:00 UTC 1970"  # the same in every build
COMPAT_VIRT_START: Final = 0xF5800000
DENIED: Final = "<denied>"  # what Xen gives a domU instead of its command line


@ops.sub(XENVER_version)
def version(current: Current, pointer: int) -> int:
    return XEN_VERSION


@ops.sub(XENVER_extraversion)
def extraversion(current: Current, pointer: int) -> None:
    current.write(pointer, _text(EXTRAVERSION, XEN_EXTRAVERSION_LEN))


@ops.sub(XENVER_compile_info, shows=xen_compile_info)
def compile_info(current: Current, pointer: int) -> None:
    info = xen_compile_info(
        compiler=_text(f"xenemu {__version__}", 64),
        compile_by=_text("xenemu", 16),
        compile_domain=_text("", 32),
        compile_date=_text(COMPILE_DATE, 32),
    )
    current.write_struct(pointer, info)


@ops.sub(XENVER_capabilities)
def capabilities(current: Current, pointer: int) -> None:
    current.write(pointer, _text(CAPABILITIES, XEN_CAPABILITIES_INFO_LEN))


@ops.sub(XENVER_changeset)
def changeset(current: Current, pointer: int) -> None:
    current.write(pointer, _text("", XEN_CHANGESET_INFO_LEN))


@ops.sub(XENVER_platform_parameters, shows=xen_platform_parameters)
def platform_parameters(current: Current, pointer: int) -> None:
    start = HYPERVISOR_VIRT_START if current.vcpu.width == 8 else COMPAT_VIRT_START
    current.write_struct(pointer, xen_platform_parameters(start))


@ops.sub(XENVER_get_features, xen_feature_info, copy_back=True)
def get_features(current: Current, op: xen_feature_info) -> None:
    """Report a submap of features; EINVAL: there is no such submap."""
    domain = current.domain
    if op.submap_idx >= XENFEAT_NR_SUBMAPS:
        raise XenError(EINVAL, f"there is no submap {op.submap_idx} of features")
    op.submap = domain.features
    translated = domain.features >> XENFEAT_auto_translated_physmap & 1
    if not translated and domain.vm_assist >> VMASST_TYPE_pae_extended_cr3 & 1:
        op.submap |= 1 << XENFEAT_pae_pgdir_above_4gb


@ops.sub(XENVER_pagesize)
def pagesize(current: Current, pointer: int) -> int:
    return PAGE_SIZE


@ops.sub(XENVER_guest_handle)
def guest_handle(current: Current, pointer: int) -> None:
    current.write(pointer, current.domain.uuid)


@ops.sub(XENVER_commandline)
def commandline(current: Current, pointer: int) -> None:
    current.write(pointer, _text(DENIED, len(DENIED) + 1))


ops.answer(XENVER_build_id, "build_id", EPERM, "for the control domain")


def _text(text: str, size: int) -> bytes:
    """A C string in a field of `size` bytes."""
    return text.encode().ljust(size, b"\0")[: size - 1] + b"\0"


xen_version = Hypercall(Nr.xen_version, "xen_version", ALL, (INT, PTR), ops)
