"""I/O ports as a domU without devices sees them: no port has anything.

Two registers remember what was written to them: the index register of the CMOS, and the address
register of PCI's configuration space. There is no PIT, because libxl gives a PV domU no emulated
devices.

In Xen: arch/x86/pv/emul-priv-op.c (guest_io_read, guest_io_write).
"""

from __future__ import annotations

from xenemu.hv.current import Current
from xenemu.hv.prices import Exit
from xenemu.pv.state import pv_domain

ABSENT = 0xFF
CMOS_INDEX = 0x70
PCI_CONFIG_ADDRESS = 0xCF8  # only as 4 bytes


def read(current: Current, port: int, size: int) -> int:
    """Read `size` bytes: all ones where nothing is, byte by byte."""
    current.asked(Exit.IN, port)
    shared = pv_domain(current)
    if port == PCI_CONFIG_ADDRESS and size == 4:
        return shared.pci_config_address
    data = bytes(shared.cmos_index if port + i == CMOS_INDEX else ABSENT for i in range(size))
    return int.from_bytes(data, "little")


def write(current: Current, port: int, size: int, value: int) -> None:
    """Write `size` bytes. Mostly nothing comes of it."""
    current.asked(Exit.OUT, port)
    shared = pv_domain(current)
    if port == PCI_CONFIG_ADDRESS and size == 4:
        shared.pci_config_address = value
    elif port <= CMOS_INDEX < port + size:
        shared.cmos_index = value >> 8 * (CMOS_INDEX - port) & 0xFF
