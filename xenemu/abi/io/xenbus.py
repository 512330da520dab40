"""The states that the two ends of a xenbus device tell each other in the xenstore.

Header: public/io/xenbus.h
"""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """``enum xenbus_state``."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2  # it has done its part, and waits for the other end's details
    INITIALISED = 3  # its details are in the store
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
