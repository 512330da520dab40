"""What Xen says about itself.

Header: public/version.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U32, ULONG, Struct, blob

XENVER_version: Final = 0
XENVER_extraversion: Final = 1
XENVER_compile_info: Final = 2
XENVER_capabilities: Final = 3
XENVER_changeset: Final = 4
XENVER_platform_parameters: Final = 5
XENVER_get_features: Final = 6
XENVER_pagesize: Final = 7
XENVER_guest_handle: Final = 8
XENVER_commandline: Final = 9
XENVER_build_id: Final = 10

XEN_EXTRAVERSION_LEN: Final = 16
XEN_CAPABILITIES_INFO_LEN: Final = 1024
XEN_CHANGESET_INFO_LEN: Final = 64
XEN_COMMANDLINE_LEN: Final = 1024


class xen_compile_info(Struct, size=(144, 144)):
    """Who compiled Xen, when, with what."""

    compiler: Annotated[bytes, blob(64)]
    compile_by: Annotated[bytes, blob(16)]
    compile_domain: Annotated[bytes, blob(32)]
    compile_date: Annotated[bytes, blob(32)]


class xen_platform_parameters(Struct, size=(8, 4)):
    """Where Xen's part of the address space starts."""

    virt_start: ULONG


class xen_feature_info(Struct, size=(8, 8)):
    """A submap of features: the index is IN, the bits are OUT."""

    submap_idx: U32
    submap: U32


XEN_VERSION: Final = 4 << 16 | 17  # the Xen that xenemu models: major, minor
