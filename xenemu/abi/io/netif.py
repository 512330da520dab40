"""The rings of a network interface: requests, responses, and extra segments in their slots.

Both widths have the same layout. A slot of the transmit ring has 12 bytes, one of the receive ring
has 8. The codes are those of Python's `struct`.

Header: public/io/netif.h
"""

from __future__ import annotations

import struct
from typing import Final

TX_SLOT: Final = 12
RX_SLOT: Final = 8

TX_REQUEST: Final = struct.Struct("<IHHHH")  # gref, offset, flags, id, size
TX_RESPONSE: Final = struct.Struct("<Hh8x")  # id, status
RX_REQUEST: Final = struct.Struct("<H2xI")  # id, gref
RX_RESPONSE: Final = struct.Struct("<HHHh")  # id, offset, flags, status: a size, or an error
EXTRA: Final = struct.Struct("<BBHBxH")  # type, flags, and of GSO: size, type, features

NETTXF_csum_blank: Final = 1 << 0
NETTXF_data_validated: Final = 1 << 1
NETTXF_more_data: Final = 1 << 2
NETTXF_extra_info: Final = 1 << 3

NETRXF_data_validated: Final = 1 << 0
NETRXF_csum_blank: Final = 1 << 1
NETRXF_more_data: Final = 1 << 2
NETRXF_extra_info: Final = 1 << 3

XEN_NETIF_EXTRA_TYPE_NONE: Final = 0
XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
XEN_NETIF_EXTRA_TYPE_MAX: Final = 5
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1

XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2

XEN_NETIF_RSP_DROPPED: Final = -2
XEN_NETIF_RSP_ERROR: Final = -1
XEN_NETIF_RSP_OKAY: Final = 0
XEN_NETIF_RSP_NULL: Final = 1  # for a slot that held an extra segment

XEN_NETIF_NR_SLOTS_MIN: Final = 18  # of one packet, which every backend takes
