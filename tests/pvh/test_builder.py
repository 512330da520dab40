"""A PVH domain is what Xen's tools would build."""

from __future__ import annotations

import gzip
import pickle
import struct

import pytest

from elfwriter import kernel as pv_kernel
from elfwriter import note
from fakes import connect_backends
from xenemu import image
from xenemu.abi.hvm import params
from xenemu.entries import ENTRIES
from xenemu.errors import ImageError, UsageError
from xenemu.hv.building import MAX_PAGES_SLACK, DomainConfig, Module
from xenemu.hv.frame_table import DOMID_NONE
from xenemu.pvh.state import StartState

MIB = 1 << 20
GIB = 1 << 30
START = 16 * MIB
MEMORY = 32 * MIB


def build(kernel, memory=MEMORY, **more):
    config = DomainConfig(memory, **more)
    domain = ENTRIES["pvh"].build(kernel, config)
    connect_backends(domain, config)
    return domain


def start_info(domain):
    """The head that EBX leads to."""
    return struct.unpack("<4I4QII", domain.memory.read(domain.vcpus[0].arch.entry.info, 56))


def modules(domain):
    _, _, _, count, paddr, *_ = start_info(domain)
    return list(struct.iter_unpack("<QQQQ", domain.memory.read(paddr, 32 * count)))


def populated(domain):
    """Ranges of guest frames with memory."""
    ranges, start = [], None
    for gfn in range((1 << 20) + 0x5000):
        there = domain.p2m.get(gfn) is not None
        if there and start is None:
            start = gfn
        elif not there and start is not None:
            ranges.append((start, gfn))
            start = None
    return ranges


def test_the_kernel_is_where_it_is_linked(kernel):
    domain = build(kernel())
    assert domain.memory.read(START, 6) == b"kernel"
    assert domain.vcpus[0].arch.entry == StartState(START + 16, START + 0x2000)


def test_a_relocated_kernel_is_entered_where_it_is(kernel):
    domain = build(kernel(note(19, bytes.fromhex("00001000"))), memory=8 * MIB)
    start = domain.vcpus[0].arch.entry.ip - 16
    assert start == 7 * MIB
    assert domain.memory.read(start, 6) == b"kernel"


def read(domain, paddr, size):
    """Bytes of one of the guest's pages."""
    return domain.memory.read((domain.p2m.lookup(paddr >> 12) << 12) + (paddr & 0xFFF), size)


def test_only_ram_acpi_and_special_pages_are_populated(kernel):
    domain = build(kernel())
    assert populated(domain) == [(0, 0x2000), (0xFC000, 0xFC003), (0xFEFF8, 0xFF000)]
    assert domain.pages.tot_pages == 0x2000 + 3 + 8
    assert domain.frames.owner[0x2000] == domain.domid  # shared_info
    assert len(domain.frames.owner) < 0x2000 + 1000


def test_high_memory_is_populated(kernel):
    domain = build(kernel(), memory=4 * GIB)
    assert populated(domain)[0] == (0, 0xFC003)
    assert populated(domain)[-1] == (1 << 20, (1 << 20) + 0x4000)
    assert domain.p2m.get((1 << 20) + 0x4000) is None


def test_xens_own_frames_are_no_memory_of_the_guests(kernel):
    domain = build(kernel())
    assert domain.p2m.get(domain.shared_info) is None
    assert all(domain.p2m.get(mfn) is None for mfn in domain.frames.heap)
    assert all(domain.p2m.get(mfn) is None for mfn in domain.grants.frames)


def test_the_initrd_is_the_first_module(kernel):
    domain = build(kernel(), initrd=b"initrd", modules=(Module(b"other", b"name"),))
    (initrd, size, no_cmdline, _), (other, _, cmdline, _) = modules(domain)
    assert (domain.memory.read(initrd, 6), size, no_cmdline) == (b"initrd", 0x1000, 0)
    assert (domain.memory.read(other, 5), domain.memory.read(cmdline, 5)) == (b"other", b"name\0")


def test_a_gzipped_module_arrives_unpacked(kernel):
    domain = build(kernel(), initrd=gzip.compress(b"x" * 5000, mtime=0))
    ((paddr, size, *_),) = modules(domain)
    assert (domain.memory.read(paddr, 5001), size) == (b"x" * 5000 + b"\0", 0x2000)


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\x8b",
        gzip.compress(b"x" * 99, mtime=0)[:-1],
        gzip.compress(b"a", mtime=0) + gzip.compress(b"bb", mtime=0),
    ],
)
def test_what_only_looks_like_gzip_stays_as_it_is(kernel, data):
    domain = build(kernel(), initrd=data)
    ((paddr, *_),) = modules(domain)
    assert domain.memory.read(paddr, len(data)) == data


def test_command_line_and_memory_map(kernel):
    domain = build(kernel(), cmdline=b"quiet")
    *_, cmdline, _, memmap, entries, _ = start_info(domain)
    assert domain.memory.read(cmdline, 6) == b"quiet\0"
    told = struct.iter_unpack("<QQII", domain.memory.read(memmap, 24 * entries))
    assert [one[:3] for one in told] == domain.e820


def test_the_rsdp_is_in_memory_that_the_map_calls_acpi(kernel):
    domain = build(kernel())
    rsdp = start_info(domain)[6]
    assert read(domain, rsdp, 8) == b"RSD PTR "
    assert any(base <= rsdp < base + size and kind == 3 for base, size, kind in domain.e820)


def test_an_old_linux_finds_the_rsdp_in_low_memory(kernel):
    domain = build(kernel(note(6, "linux")))
    assert start_info(domain)[6] == 0xFFFC0
    assert domain.memory.read(0xFFFC0, 8) == b"RSD PTR "
    assert populated(domain)[1] == (0xFC000, 0xFC002)


def test_the_console_and_the_xenstore_are_named_by_parameters(kernel):
    domain = build(kernel())
    param = domain.arch.params
    assert param[params.HVM_PARAM_CONSOLE_PFN] == domain.mfn_to_gfn(domain.console.mfn) == 0xFEFFF
    assert param[params.HVM_PARAM_STORE_PFN] == domain.mfn_to_gfn(domain.xenstore.mfn) == 0xFEFFC
    assert param[params.HVM_PARAM_STORE_EVTCHN] == domain.xenstore.port == 1
    assert param[params.HVM_PARAM_CONSOLE_EVTCHN] == domain.console.port == 2


def test_the_identity_page_table_is_one(kernel):
    domain = build(kernel())
    table = domain.arch.params[params.HVM_PARAM_IDENT_PT]
    assert read(domain, table + 4 * 1023, 4) == bytes.fromhex("e700c0ff")


def test_features_and_first_states(kernel):
    domain = build(kernel(), vcpus=2)
    assert domain.features == 0x12305
    assert [vcpu.online for vcpu in domain.vcpus] == [True, False]
    assert [vcpu.arch.lapic.apic_id for vcpu in domain.vcpus] == [0, 2]
    assert domain.vcpus[1].arch.entry is None


def test_vcpus_without_room_in_shared_info_share_a_dummy(kernel):
    domain = build(kernel(), vcpus=34)
    info = [vcpu.info for vcpu in domain.vcpus]
    assert info[31] == domain.shared_info_maddr + 31 * 64
    assert info[32] == info[33] == domain.shared_info_maddr + 4096
    assert domain.frames.owner[info[32] >> 12] == DOMID_NONE


def test_too_many_vcpus_are_refused(kernel):
    with pytest.raises(UsageError, match="at most 128 vcpus, not 129"):
        build(kernel(), vcpus=129)


@pytest.mark.parametrize("memory", [0, 4095, MIB, START])
def test_too_little_memory_is_refused(kernel, memory):
    with pytest.raises(ImageError, match=r"the kernel would lie at .*more memory"):
        build(kernel(), memory=memory)


def test_a_module_that_does_not_fit_is_refused(kernel):
    with pytest.raises(ImageError, match="module 0 would lie at"):
        build(kernel(), initrd=bytes(20 * MIB))


def test_an_image_without_the_note_is_refused(tmp_path):
    (tmp_path / "pv").write_bytes(pv_kernel())
    with pytest.raises(ImageError, match="cannot boot as pvh: there is no PHYS32_ENTRY note"):
        build(image.load(tmp_path / "pv"))


def test_the_state_is_plain_data(kernel):
    domain = build(kernel(), vcpus=2)
    for part in (domain.arch, domain.vcpus, domain.p2m, domain.e820):
        assert pickle.loads(pickle.dumps(part)) == part


def test_debians_kernel(guest_image):
    found = image.load(guest_image("debian-amd64"))
    domain = build(found, memory=256 * MIB, initrd=b"initrd")
    entry = domain.vcpus[0].arch.entry
    assert found.pstart <= entry.ip < found.pend
    ((initrd, *_),) = modules(domain)
    assert found.pend <= entry.info < initrd  # it takes its initrd unmapped
    assert start_info(domain)[6] >> 24 == 0xFC
    first = found.segments[0]
    assert domain.memory.read(first.paddr, 4096) == bytes(first.data[:4096])


def test_a_domain_with_a_balloon_may_keep_less_than_it_begins_with(kernel):
    domain = build(kernel(), maxmem=2 * MEMORY)
    assert populated(domain)[0] == (0, 2 * MEMORY >> 12)
    assert domain.pages.max_pages == (MEMORY >> 12) + MAX_PAGES_SLACK
