"""NMI callbacks.

Header: public/nmi.h
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.layout import ULONG, Struct

XENNMI_register_callback: Final = 0
XENNMI_unregister_callback: Final = 1


class xennmi_callback(Struct, size=(16, 8)):
    """Where a guest's NMI handler begins."""

    handler_address: ULONG
    pad: ULONG
