"""The header of a ring of requests and responses, which share their slots.

Header: public/io/ring.h
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from xenemu.abi.layout import U32, Struct, blob


@dataclass
class sring(Struct, size=(64, 64)):
    """What DEFINE_RING_TYPES puts before the slots; all indices run freely."""

    req_prod: U32
    req_event: U32  # the frontend notifies when req_prod reaches it
    rsp_prod: U32
    rsp_event: U32  # the backend notifies when rsp_prod reaches it
    pvt: Annotated[bytes, blob(48)]
