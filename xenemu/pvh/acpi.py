"""The ACPI tables of a PVH domain, as Xen's libacpi makes them with libxl's choices for PVH.

There is no device model, so little is left: a local APIC for each vcpu, and an FADT that says what
is missing. The FADT has no PM timer, no VGA, no 8042 and no CMOS clock. Power and sleep buttons are
not fixed hardware. Xen does not set HW_REDUCED_ACPI. So the FADT still names an SCI and PM1
registers, where a guest reads nothing but ones. The RSDT is for ACPI 1.0 systems, and has an FADT
of its own.

In Xen: tools/libacpi/build.c, static_tables.c, mk_dsdt.c, tools/libs/light/libxl_x86_acpi.c
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SIZE

LAPIC_BASE_ADDRESS: Final = 0xFEE00000
RSDP_SIZE: Final = 64  # bytes that libxl copies; the rest after the structure is zero
NUM_ACPI_PAGES: Final = 16  # the most that the tables may take

_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT: Final = 9
_ALIGNMENT: Final = 16

_PM1A_EVT_BLK: Final = 0xB000
_PM1A_CNT_BLK: Final = 0xB004
_PM_TMR_BLK: Final = 0xB008
_GPE0_BLK: Final = 0xAFE0
_P_BLK: Final = 0xB010
_RESET_PORT: Final = 0xCF9
_SCI: Final = 9

# FADT: flags and boot architecture flags.
_WBINVD: Final = 1 << 0
_PROC_C1: Final = 1 << 2
_PWR_BUTTON: Final = 1 << 4  # no fixed power button
_SLP_BUTTON: Final = 1 << 5
_FIX_RTC: Final = 1 << 6
_TMR_VAL_EXT: Final = 1 << 8
_USE_PLATFORM_CLOCK: Final = 1 << 15
_FLAGS: Final = _WBINVD | _PROC_C1 | _FIX_RTC | _TMR_VAL_EXT | _USE_PLATFORM_CLOCK
_NO_VGA: Final = 1 << 2
_NO_CMOS_RTC: Final = 1 << 5

_PCAT_COMPAT: Final = 1 << 0  # MADT
_LOCAL_APIC_ENABLED: Final = 1 << 0


@dataclass(frozen=True)
class AcpiTables:
    """What goes where: `info` to the base, `tables` to the pages after it.

    The RSDP points to `tables`. Nothing points to the RSDP, so it may lie anywhere.
    """

    info: bytes
    tables: bytes
    rsdp: bytes


def apic_id(vcpu_id: int) -> int:
    """The local APIC id that libxl gives a vcpu."""
    return vcpu_id * 2


def build(base: int, vcpus: int, online: int | None = None) -> AcpiTables:
    """Make the tables for a page of `acpi_info` at `base` and whole pages of tables after it.

    Of the `vcpus`, only the first `online` are enabled, if not all are.
    """
    enabled = vcpus if online is None else online
    processors = [_Processor(n, n < enabled) for n in range(vcpus)]
    heap = _Heap(base + PAGE_SIZE)
    facs = heap.put(struct.pack("<4sI24xB31x", b"FACS", 64, 1))
    dsdt = heap.put(_table(b"DSDT", 5, _processors(processors)))
    fadt_10 = heap.put(_table(b"FACP", 1, _fadt_1_0(facs, dsdt)))
    fadt = heap.put(_table(b"FACP", 5, _fadt_5_0(facs, dsdt)))
    madt = heap.put(_madt(processors))
    xsdt = heap.put(_table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    rsdt = heap.put(_table(b"RSDT", 1, struct.pack("<II", fadt_10, madt)))
    info = struct.pack("<xxHIIIIIQQ", vcpus, 0, 0, madt + _CHECKSUM_AT, madt + 44, 0, 0, 0)
    return AcpiTables(info.ljust(PAGE_SIZE, b"\0"), heap.pages(), _rsdp(rsdt, xsdt))


class _Heap:
    """Collects tables for consecutive addresses."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._data = bytearray()

    def put(self, table: bytes) -> int:
        """Append a table; its address."""
        self._data += bytes(-len(self._data) % _ALIGNMENT)
        address = self._start + len(self._data)
        self._data += table
        return address

    def pages(self) -> bytes:
        return bytes(self._data) + bytes(-len(self._data) % PAGE_SIZE)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    table = bytearray(_HEADER.pack(signature, size, revision, 0, b"Xen", b"HVM", 0, b"HVML", 0))
    table += body
    table[_CHECKSUM_AT] = _checksum(table)
    return bytes(table)


def _checksum(data: Sequence[int]) -> int:
    """The byte that makes them all add up to 0."""
    return -sum(data) & 0xFF


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    """ACPI 6.4, 5.2.5.3: the first checksum is over the 20 bytes of ACPI 1.0."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"Xen", 2, rsdt, 36, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp).ljust(RSDP_SIZE, b"\0")


def _fadt_1_0(facs: int, dsdt: int) -> bytes:
    """ACPI 1.0's FADT after its header. It does name a PM timer, as in Xen."""
    return _fadt_head(facs, dsdt, pm_timer=True, boot_arch=0, flags=_FLAGS)


def _fadt_5_0(facs: int, dsdt: int) -> bytes:
    """ACPI 5.0's FADT after its header (ACPI 6.4, 5.2.9)."""
    flags = _FLAGS | _PWR_BUTTON | _SLP_BUTTON
    body = _fadt_head(facs, dsdt, pm_timer=False, boot_arch=_NO_VGA | _NO_CMOS_RTC, flags=flags)
    body += _port(_RESET_PORT, 8) + struct.pack("<B3xQQ", 6, facs, dsdt)
    # PM1A and PM1B events, PM1A and PM1B control, PM2 control, PM timer, GPE0 and GPE1 blocks,
    # sleep control and sleep status registers.
    body += _port(_PM1A_EVT_BLK, 32) + _port(0, 0) + _port(_PM1A_CNT_BLK, 16) + _port(0, 0)
    return body + 6 * _port(0, 0)


def _fadt_head(facs: int, dsdt: int, pm_timer: bool, boot_arch: int, flags: int) -> bytes:
    """The part that ACPI 1.0 has, too."""
    timer = _PM_TMR_BLK if pm_timer else 0
    head = struct.pack("<IIxxHIxxxx", facs, dsdt, _SCI, 0)
    head += struct.pack("<8I", _PM1A_EVT_BLK, 0, _PM1A_CNT_BLK, 0, 0, timer, _GPE0_BLK, 0)
    head += struct.pack("<8B", 4, 2, 0, 4 if pm_timer else 0, 4, 0, 0, 0)  # their sizes
    head += struct.pack("<HH9x", 0xFFF, 0xFFF)  # latencies that mean: no C2, no C3
    return head + struct.pack("<HxI", boot_arch, flags)


def _port(address: int, bits: int) -> bytes:
    """A generic address structure: `bits` of I/O ports, none if 0 (ACPI 6.4, 5.2.3.2)."""
    return struct.pack("<BBxxQ", 1 if bits else 0, bits, address)


class _Processor(NamedTuple):
    """A vcpu as the tables have it."""

    vcpu_id: int
    enabled: bool

    def local_apic(self) -> bytes:
        """Its entry of the MADT (ACPI 6.4, 5.2.12.2)."""
        flags = _LOCAL_APIC_ENABLED if self.enabled else 0
        return struct.pack("<BBBBI", 0, 8, self.vcpu_id, apic_id(self.vcpu_id), flags)


def _madt(processors: Sequence[_Processor]) -> bytes:
    """Without an I/O APIC, overrides or NMI pins: Xen emulates none of them for PVH."""
    lapics = b"".join(processor.local_apic() for processor in processors)
    return _table(b"APIC", 2, struct.pack("<II", LAPIC_BASE_ADDRESS, _PCAT_COMPAT) + lapics)


# The DSDT: a processor object for each vcpu, in AML (ACPI 6.4, chapter 20).


def _processors(processors: Sequence[_Processor]) -> bytes:
    # DIVERGES: Xen has 128 processors, whose methods look in `acpi_info` and the MADT whether
    # they exist, and a handler for hotplug by an event that PVH never raises. A guest would
    # only pay for evaluating them.
    return _block(b"\x10", b"\\_SB_", b"".join(map(_processor, processors)))


def _processor(processor: _Processor) -> bytes:
    vcpu_id = processor.vcpu_id
    head = b"PR%02X" % vcpu_id + struct.pack("<BIB", vcpu_id, _P_BLK, 6)
    mat = b"\x0a\x08" + processor.local_apic()
    objects = (
        _name(b"_HID", b"\x0dACPI0007\0"),
        _name(b"_UID", b"\x0a" + bytes([vcpu_id])),
        _name(b"_MAT", _block(b"\x11", b"", mat)),
        _name(b"_STA", b"\x0a\x0f" if processor.enabled else b"\0"),
    )
    return _block(b"\x5b\x83", head, b"".join(objects))


def _name(name: bytes, value: bytes) -> bytes:
    return b"\x08" + name + value


def _block(opcode: bytes, head: bytes, body: bytes) -> bytes:
    """An operator with a package length, which counts itself: 1 to 3 bytes (ACPI 6.4, 20.2.4)."""
    size = len(head) + len(body)
    if size + 1 < 1 << 6:
        length = bytes([size + 1])
    else:
        extra = 1 if size + 2 < 1 << 12 else 2
        size += 1 + extra
        length = bytes([extra << 6 | size & 15]) + (size >> 4).to_bytes(extra, "little")
    return opcode + length + head + body
