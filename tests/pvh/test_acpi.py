"""The ACPI tables are read back by the specification, not by the code that makes them."""

from __future__ import annotations

import struct

import pytest

from xenemu.pvh import acpi

BASE = 0xFC000000
NO_PORT = bytes(12)


class Reader:
    """Finds tables by address, as a guest does, and checks what must hold for each."""

    def __init__(self, vcpus: int, online: int | None = None) -> None:
        self.built = acpi.build(BASE, vcpus, online)
        self.memory = self.built.info + self.built.tables

    def table(self, address: int) -> bytes:
        start = address - BASE
        (size,) = struct.unpack_from("<I", self.memory, start + 4)
        table = self.memory[start : start + size]
        assert len(table) == size
        if table[:4] != b"FACS":
            assert sum(table) & 0xFF == 0
            assert table[10:24] == b"Xen\0\0\0HVM\0\0\0\0\0"
        return table

    def root(self, offset: int, code: str) -> dict[bytes, bytes]:
        """The tables of the XSDT or RSDT, by signature; `offset` is where the RSDP names it."""
        (address,) = struct.unpack_from(code, self.built.rsdp, offset)
        found = [self.table(one) for (one,) in struct.iter_unpack(code, self.table(address)[36:])]
        return {table[:4]: table for table in found}

    def xsdt(self) -> dict[bytes, bytes]:
        return self.root(24, "<Q")


def test_the_rsdp_has_both_checksums():
    rsdp = acpi.build(BASE, 1).rsdp
    assert (rsdp[:8], rsdp[15], rsdp[20:24]) == (b"RSD PTR ", 2, b"\x24\0\0\0")
    assert (sum(rsdp[:20]) & 0xFF, sum(rsdp[:36]) & 0xFF, rsdp[36:]) == (0, 0, bytes(28))


def test_tables_take_whole_pages_behind_the_info_page():
    built = acpi.build(BASE, acpi.NUM_ACPI_PAGES)
    assert (len(built.info), len(built.tables) % 4096) == (4096, 0)


def test_the_most_vcpus_fit_where_libxl_has_room():
    assert len(acpi.build(BASE, 128).tables) <= acpi.NUM_ACPI_PAGES * 4096


def test_the_first_table_is_where_real_xen_has_it():
    facs, dsdt = struct.unpack_from("<II", Reader(1).xsdt()[b"FACP"], 36)
    assert (facs, dsdt) == (BASE + 0x1000, BASE + 0x1040)


def test_the_xsdt_has_an_fadt_and_a_madt():
    assert {name: table[8] for name, table in Reader(1).xsdt().items()} == {b"FACP": 5, b"APIC": 2}


def test_the_rsdt_has_an_fadt_of_its_own_that_acpi_1_0_can_read():
    tables = Reader(1).root(16, "<I")
    assert {name: table[8] for name, table in tables.items()} == {b"FACP": 1, b"APIC": 2}
    assert len(tables[b"FACP"]) == 116


def test_the_fadt_has_no_pm_timer_vga_8042_or_cmos_clock():
    fadt = Reader(1).xsdt()[b"FACP"]
    assert len(fadt) == 0x10C
    assert (fadt[76:80], fadt[91], fadt[208:220]) == (bytes(4), 0, NO_PORT)
    assert struct.unpack_from("<H", fadt, 109) == (0x24,)


def test_the_fadt_is_xens_not_hardware_reduced():
    fadt = Reader(1).xsdt()[b"FACP"]
    assert struct.unpack_from("<I", fadt, 112) == (0x8175,)
    assert struct.unpack_from("<H", fadt, 46) == (9,)  # the SCI
    assert struct.unpack_from("<I", fadt, 48) == (0,)  # SMI_CMD: always in ACPI mode


def test_the_fadts_ports_are_the_same_in_both_forms():
    fadt = Reader(1).xsdt()[b"FACP"]
    for old, size, new in ((56, 88, 148), (64, 89, 172)):
        (port,) = struct.unpack_from("<I", fadt, old)
        assert fadt[new : new + 12] == struct.pack("<BBHQ", 1, 8 * fadt[size], 0, port)


def test_both_fadts_name_the_same_facs_and_dsdt():
    reader = Reader(1)
    fadt, old = reader.xsdt()[b"FACP"], reader.root(16, "<I")[b"FACP"]
    wide = struct.unpack_from("<QQ", fadt, 132)
    assert struct.unpack_from("<II", fadt, 36) == struct.unpack_from("<II", old, 36) == wide
    assert [reader.table(one)[:4] for one in wide] == [b"FACS", b"DSDT"]
    assert len(reader.table(wide[0])) == 64


def test_the_madt_has_a_local_apic_for_each_vcpu_and_nothing_else():
    madt = Reader(3).xsdt()[b"APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    lapics = [(0, 8, n, 2 * n, 1) for n in range(3)]
    assert list(struct.iter_unpack("<BBBBI", madt[44:])) == lapics


def test_vcpus_that_are_offline_at_first_are_disabled():
    reader = Reader(3, online=2)
    madt = reader.xsdt()[b"APIC"]
    assert [entry[4] for entry in struct.iter_unpack("<BBBBI", madt[44:])] == [1, 1, 0]
    dsdt = reader.table(struct.unpack_from("<I", reader.xsdt()[b"FACP"], 40)[0])
    assert dsdt.count(b"\x08_STA\x0a\x0f") == 2 and dsdt.count(b"\x08_STA\0") == 1


def test_acpi_info_tells_where_the_madts_entries_are():
    reader = Reader(5)
    vcpus, csum, lapic0 = struct.unpack_from("<2xH8xII", reader.built.info)
    assert vcpus == 5
    assert reader.memory[csum - BASE - 9 :][:4] == b"APIC"
    assert lapic0 == csum - 9 + 44


def package(aml: bytes, at: int) -> tuple[int, int]:
    """The start and end of what is in a package whose length is at `at` (ACPI 6.4, 20.2.4)."""
    extra = aml[at] >> 6
    size = aml[at] & (0xF if extra else 0x3F)
    for n in range(extra):
        size |= aml[at + 1 + n] << 4 + 8 * n
    return at + 1 + extra, at + size


@pytest.mark.parametrize("vcpus", [1, 2, 70, 128])
def test_the_dsdt_has_a_processor_for_each_vcpu(vcpus):
    reader = Reader(vcpus)
    aml = reader.table(struct.unpack_from("<Q", reader.xsdt()[b"FACP"], 140)[0])[36:]
    assert aml[0] == 0x10  # Scope
    at, end = package(aml, 1)
    assert (aml[at : at + 5], end) == (b"\\_SB_", len(aml))
    at += 5
    for n in range(vcpus):
        assert aml[at : at + 2] == b"\x5b\x83"  # Processor
        start, at = package(aml, at + 2)
        assert aml[start : start + 5] == b"PR%02X" % n + bytes([n])
        assert b"\x08_HID\x0dACPI0007\0" in aml[start:at]
        assert b"\x08_UID\x0a" + bytes([n]) + b"\x08" in aml[start:at]
        assert struct.pack("<BBBBI", 0, 8, n, 2 * n, 1) in aml[start:at]
    assert at == end
