"""machine/migration: the format, of domains that are made up; what is written is read again."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest

from xenemu.errors import UsageError
from xenemu.hv import cpu_policy
from xenemu.machine.migration import envelope, policy, saved
from xenemu.machine.migration.envelope import Told
from xenemu.machine.migration.records import Kind, Record, StreamError, put_record
from xenemu.machine.migration.saved import (
    HvmState,
    Pages,
    PvState,
    PvVcpuState,
    Saved,
    TscInfo,
)

PAGE = bytes(range(256)) * 16
TOLD = Told("mine", bytes(range(16)), 64 << 20, 32 << 20, 1, 3)
PAGES = Pages({0: PAGE, 5: PAGE[::-1], 2000: bytes(4096)})
TSC = TscInfo(0, 1_000_000, 12345, 7)
PV = Saved(
    PvState(8, [5, 6, 7, 8], 2000, bytes(4096), {0: PvVcpuState(b"x" * 24, b"y" * 8, b"z" * 16)}),
    Pages(PAGES.data, {5: 9}),
    TSC,
    b"c" * 24,
    b"m" * 16,
)
HVM = Saved(HvmState(b"context!", {1: 2, 17: 3}), PAGES, TSC, b"c" * 24, b"m" * 16)


def written(domain: Saved) -> bytes:
    data = bytearray()
    saved.write(data.extend, domain)
    return bytes(data)


@pytest.mark.parametrize("domain", [PV, HVM])
def test_what_is_written_is_read(domain):
    data = bytearray()
    envelope.write(data.extend, domain, TOLD)
    assert envelope.read(memoryview(bytes(data))) == (domain, TOLD)
    bare = memoryview(written(domain))
    assert envelope.read(bare) == (domain, None)
    assert saved.read(memoryview(bytes(bare) + b"rest"))[1] == b"rest"


def test_a_file_says_that_its_guest_is_a_shell_of_ours_and_others_need_not():
    data = bytearray()
    envelope.write(data.extend, PV, replace(TOLD, is_shell=True))
    assert envelope.read(memoryview(bytes(data)))[1].is_shell
    strange = bytes(data).replace(b'"is_shell": true', b'"is_shell": 1   ')
    assert not envelope.read(memoryview(strange))[1].is_shell


def test_a_stream_of_version_2_has_no_policies():
    data = bytearray(written(replace(HVM, cpuid_policy=b"", msr_policy=b"")))
    data[12:16] = (2).to_bytes(4, "big")
    assert refused(bytes(data)) == "it has a X86_CPUID_POLICY, and is of version 2"
    head, records = data[:40], data[40:]
    for _ in range(3):  # the two policies and STATIC_DATA_END
        records = records[8:]
    found, _ = saved.read(memoryview(bytes(head + records)))
    assert found == replace(HVM, cpuid_policy=b"", msr_policy=b"")


def refused(data: bytes) -> str:
    with pytest.raises(StreamError) as why:
        envelope.read(memoryview(data))
    return str(why.value)


def test_a_foreign_file_is_refused():
    assert refused(b"") == refused(b"\x7fELF") == "it is too short for a saved domain"
    assert refused(b"xenemu snapshot\n".ljust(100, b"\0")) == "it is no saved domain of Xen's"
    assert refused(b"LinuxGuestRecord" * 9) == "it is no saved domain of Xen's"  # before 4.6


def test_a_header_that_is_not_known_is_refused():
    data = written(HVM)
    for at, value, why in (
        (12, (4).to_bytes(4, "big"), "a stream of version 4; version 2 or 3 can be read"),
        (16, b"\0\1", "it was saved on a big-endian host"),
        (16, b"\0\2", "its header has a reserved bit"),
        (20, b"\1", "its header has a reserved bit"),
        (24, b"\3", "a domain of type 3; 1 is x86 PV, 2 is x86 HVM"),
        (28, b"\x0d", "its domain header makes no sense"),
    ):
        assert refused(data[:at] + value + data[at + len(value) :]) == why


def with_records(kind: Kind, *records: tuple[int, bytes]) -> bytes:
    """A stream of these records, and END."""
    data = bytearray(written(HVM)[:40])
    data[24] = kind
    for number, body in (*records, (Record.END, b"")):
        put_record(data.extend, number, body)
    return bytes(data)


def page_data(*numbers: int, pages: bytes = b"") -> tuple[int, bytes]:
    count = struct.pack("<II", len(numbers), 0)
    return Record.PAGE_DATA, count + struct.pack(f"<{len(numbers)}Q", *numbers) + pages


def test_a_record_that_makes_no_sense_is_refused():
    hvm, pv = Kind.HVM, Kind.PV
    for kind, records, why in (
        (hvm, [], "it has no HVM_CONTEXT"),
        (pv, [], "it has no X86_PV_INFO"),
        (hvm, [(99, b"")], "a record of type 0x63, which is not known"),
        (hvm, [(Record.X86_PV_INFO, b"")], "it has a X86_PV_INFO, and is not of such a domain"),
        (pv, [(Record.HVM_PARAMS, b"")], "it has a HVM_PARAMS, and is not of such a domain"),
        (hvm, [(Record.HVM_CONTEXT, b"")] * 2, "it has two records HVM_CONTEXT"),
        (hvm, [(Record.CHECKPOINT, b"")], "it has checkpoints, as of Remus"),
        (pv, [(Record.X86_PV_INFO, b"\4\4".ljust(8, b"\0"))], "of 32 bits and 4 levels"),
        (pv, [(Record.X86_PV_P2M_FRAMES, bytes(16))], "before X86_PV_INFO"),
        (pv, [(Record.X86_PV_VCPU_XSAVE, struct.pack("<IIQQ", 0, 0, 7, 7))], "XSAVE's"),
        (hvm, [page_data()], "it has a PAGE_DATA without pages"),
        (hvm, [page_data(1)], "the page of pfn 0x1 is not there"),
        (hvm, [page_data(1, pages=PAGE + b"x")], "a PAGE_DATA has more data than pages"),
        (hvm, [page_data(1 << 55, pages=PAGE)], "has a reserved bit"),
        (hvm, [page_data(6 << 60, pages=PAGE)], "has the type 0x6, which does not exist"),
        (hvm, [page_data(1 << 60, pages=PAGE)], "is a page table of a PV domain's"),
        (hvm, [(Record.X86_TSC_INFO, b""), (Record.HVM_CONTEXT, b"c")], "no HVM_PARAMS"),
    ):
        assert why in refused(with_records(kind, *records)), (kind, records)


def test_a_record_that_need_not_be_known_is_ignored():
    stream = with_records(
        Kind.HVM,
        (99 | 1 << 31, b"abc"),
        (Record.VERIFY, b""),
        page_data(1, 2 | 0xE << 60, 3 | 0xF << 60, pages=PAGE),
        (Record.HVM_CONTEXT, b"c"),
        (Record.HVM_PARAMS, bytes(8)),
    )
    found, _ = saved.read(memoryview(stream))
    assert found.pages.data == {1: PAGE, 2: bytes(4096)}
    assert found.tsc is None


def test_padding_that_is_not_zero_is_refused():
    stream = bytearray(with_records(Kind.HVM, (99 | 1 << 31, b"abc")))
    assert stream[40 + 8 :][:8] == b"abc" + bytes(5)
    stream[40 + 8 + 7] = 1
    assert "filled up with other than zeroes" in refused(bytes(stream))


def test_what_xl_says_must_make_sense():
    data = bytearray()
    envelope.write(data.extend, HVM, TOLD)
    at, end = data.index(b"{"), data.index(b"\0", data.index(b"{"))
    config = json.loads(data[at:end])
    for change, why in (
        ({"max_memkb": -1}, "max_memkb is -1"),
        ({"max_memkb": "many"}, "max_memkb is 'many'"),
        ({"max_memkb": 1 << 39}, "MiB, and it has few of them"),
        ({"max_vcpus": 0}, "max_vcpus is 0"),
    ):
        changed = {**config, "b_info": {**config["b_info"], **change}}
        text = json.dumps(changed).encode() + b"\0"
        sizes = struct.pack("<4I", 0x01020304, 3, 0, len(text) + 4) + struct.pack("<I", len(text))
        assert why in refused(bytes(data[:32]) + sizes + text + bytes(data[end + 1 :]))
    assert "not whole" in refused(bytes(data[: at + 10]))
    data[36] = 1
    assert "an xl that is too old or too new (flags 0x1)" in refused(bytes(data))


def test_a_device_models_state_is_refused():
    data = bytearray(envelope.LIBXL_HEADER.pack(envelope.LIBXL_IDENT, 2, 0))
    put_record(data.extend, 1)
    saved.write(data.extend, HVM)
    put_record(data.extend, 3, b"qemu")
    assert "only PV and PVH domains can be restored here" in refused(bytes(data))


def test_a_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "saved"
    path.write_bytes(written(HVM)[:-1])
    for file in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError) as why:
            envelope.read_file(file)
        assert str(why.value).startswith(f"{file}: ") and "\n" not in str(why.value)


def test_a_guest_that_knows_of_other_features_is_refused():
    policy.check(policy.cpuid(cpu_policy.PV64), cpu_policy.PV64)
    policy.check(b"", cpu_policy.PV64)
    more = replace(cpu_policy.PV64, leaves={7: (0, 1 << 5 | 1 << 16, 0, 0), 1: (0, 0, 1 << 28, 0)})
    with pytest.raises(StreamError, match="lacks: 0x1 c 28, 0x7 b 5, 0x7 b 16"):
        policy.check(policy.cpuid(more), cpu_policy.PV64)
    with pytest.raises(StreamError, match=r"lacks: CX16, LAHF_LM, SYSCALL, LM$"):
        policy.check(policy.cpuid(cpu_policy.PV64), cpu_policy.PV32)
