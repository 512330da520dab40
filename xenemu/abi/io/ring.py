"""The header of a ring of requests and responses, which share their slots.

The C macro DEFINE_RING_TYPES makes a struct of it for each pair of them. Both widths have the same.
The indices have 32 bits, and run freely.

Header: public/io/ring.h
"""

from __future__ import annotations

from typing import Final

# Offsets.
REQ_PROD: Final = 0
REQ_EVENT: Final = 4  # the frontend notifies when req_prod reaches it
RSP_PROD: Final = 8
RSP_EVENT: Final = 12  # the backend notifies when rsp_prod reaches it
SLOTS: Final = 64  # where the slots begin
