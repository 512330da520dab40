"""The 9pfs transport: two rings of bytes in pages of their own, and the page that describes them.

In the data pages, the first half is the ring "in", from the backend to the frontend, and the second
half the ring "out". Indices have 32 bits, and run freely. Both widths have the same.

Header: public/io/9pfs.h; docs/misc/9pfs.pandoc
"""

from __future__ import annotations

from typing import Final

# Offsets in the interface's page, of what the macro DEFINE_XEN_FLEX_RING_AND_INTF declares.
IN_CONS: Final = 0
IN_PROD: Final = 4
OUT_CONS: Final = 64
OUT_PROD: Final = 68
RING_ORDER: Final = 128  # of the data pages' number
REF: Final = 132  # their grants, 32 bits each

VERSION: Final = "1"
