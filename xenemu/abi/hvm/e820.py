"""Types of ranges in the memory map.

Header: public/hvm/e820.h
"""

from __future__ import annotations

from typing import Final

E820_RAM: Final = 1
E820_RESERVED: Final = 2
E820_ACPI: Final = 3
E820_NVS: Final = 4
