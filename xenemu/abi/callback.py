"""Callbacks that a PV guest registers.

Header: public/callback.h
"""

from __future__ import annotations

from typing import Annotated, Final

from xenemu.abi.layout import U16, Struct, blob

CALLBACKTYPE_event: Final = 0
CALLBACKTYPE_failsafe: Final = 1
CALLBACKTYPE_syscall: Final = 2
CALLBACKTYPE_sysenter_deprecated: Final = 3
CALLBACKTYPE_nmi: Final = 4
CALLBACKTYPE_sysenter: Final = 5
CALLBACKTYPE_syscall32: Final = 7

CALLBACKF_mask_events: Final = 1 << 0

CALLBACKOP_register: Final = 0
CALLBACKOP_unregister: Final = 1


class callback_register(Struct, size=(16, 12)):
    """`address` is an ``unsigned long``, or for a 32-bit guest {cs, eip}."""

    type: U16
    flags: U16
    address: Annotated[bytes, blob(8, 8, 8, 4)]


class callback_unregister(Struct, size=(4, 4)):
    """Which callback to forget."""

    type: U16
    _unused: U16
