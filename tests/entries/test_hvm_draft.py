"""entries/hvm_draft: what the PVH draft of 2015 promises a kernel, and which kernels it is for."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from elfwriter import KERNEL, PV_NOTES, kernel, note
from fakes import FakeNativeCpu
from xenemu import cli
from xenemu.abi.hvm import params
from xenemu.abi.xen import start_info
from xenemu.entries import ENTRIES, choose
from xenemu.errors import FitError, ImageError, UsageError
from xenemu.hv.building import DomainConfig, Module
from xenemu.hv.cpu import Reg, Seg, Segment
from xenemu.hv.current import Current
from xenemu.image import DraftNotes
from xenemu.pvh.state import PvhDomain, pvh_vcpu

MIB = 1 << 20
DRAFT = ENTRIES["hvm-draft-a"]
ENTRY, OFFSET = note(20, 0x1000010, width=4), note(21, 0, width=4)


@pytest.fixture
def build(load):
    """A function that builds a domain of 64 MiB by the draft, of a kernel with these notes."""

    def build(notes=(ENTRY, OFFSET), bits=64, memory=64 * MIB, **config):
        return DRAFT.build(load(kernel(notes, bits=bits)), DomainConfig(memory, **config))

    return build


def told(domain, width: int = 8) -> tuple[int, start_info]:
    """The address of start_info, and what is there."""
    entry = pvh_vcpu(domain.vcpus[0]).entry
    assert entry is not None
    data = domain.memory.read(entry.info, start_info.sizeof(width))
    return entry.info, start_info.unpack(width, data)


def test_the_first_registers(build):
    domain = build()
    cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
    personality = DRAFT.platform.personality
    DRAFT.start(Current(domain, domain.vcpus[0], cpu, personality.translate))
    info, _ = told(domain)
    assert (cpu.rip, cpu.rflags) == (0x1000010, 2)
    assert (cpu.regs[Reg.RAX], cpu.regs[Reg.RSI]) == (0xFF6BC1E2, info)
    assert sum(cpu.regs) == 0xFF6BC1E2 + info
    assert (cpu.cr0, cpu.cr4, cpu.efer) == (0x11, 0, 0)  # PE and ET: no paging
    assert cpu.segment(Seg.CS) == Segment(0, 0, 0xFFFFFFFF, 0x00C09B00)
    for which in (Seg.DS, Seg.ES, Seg.SS):
        assert cpu.segment(which) == Segment(0, 0, 0xFFFFFFFF, 0x00C09300)


@pytest.mark.parametrize(("bits", "magic"), [(64, b"xen-3.0-x86_64"), (32, b"xen-3.0-x86_32p")])
def test_start_info_has_physical_addresses(build, bits, magic):
    domain = build(bits=bits, cmdline=b"a b", initrd=gzip.compress(b"module"))
    at, info = told(domain, bits // 8)
    assert at % 4096 == 0 and at > 0x1002000
    assert info.magic.rstrip(b"\0") == magic and info.cmd_line.rstrip(b"\0") == b"a b"
    assert (info.nr_pages, info.mod_len) == (64 << 8, 4096)
    assert domain.memory.read(info.mod_start, 7) == b"module\0"


def test_all_else_in_start_info_is_0(build):
    domain = build()
    _, info = told(domain)
    empty = start_info.unpack(8, bytes(start_info.sizeof(8)))
    assert replace(info, magic=empty.magic, nr_pages=0) == empty


def test_the_rings_are_told_by_hvm_parameters(build):
    domain = build()
    assert isinstance(domain.arch, PvhDomain)
    for which in (params.HVM_PARAM_CONSOLE_PFN, params.HVM_PARAM_CONSOLE_EVTCHN):
        assert domain.arch.params[which]


def test_paddr_offset_is_how_far_p_paddr_is_above_the_address(load, build):
    notes = (note(20, 0x800010, width=4), note(21, 0x800000))
    found = load(kernel(notes))
    assert DRAFT.verdict(found).where == (0x800000, 0x802000, 0x800010)
    assert build(notes).memory.read(0x800000, 6) == bytes(KERNEL.data[:6])


def test_paddr_offset_is_0_without_its_note(load):
    assert DRAFT.verdict(load(kernel([ENTRY]))).where == (0x1000000, 0x1002000, 0x1000010)


def test_the_last_of_two_notes_counts(load):
    notes = [note(20, 0, width=4), ENTRY]
    assert DRAFT.verdict(load(kernel(notes))).where == (0x1000000, 0x1002000, 0x1000010)


def test_the_types_can_be_others(load):
    found = load(kernel([note(99, 0x1000010), note(4, 0)]))
    assert not DRAFT.verdict(found).bootable
    asked = replace(found, draft_notes=DraftNotes(99, 4))
    assert DRAFT.verdict(asked).where == (0x1000000, 0x1002000, 0x1000010)


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        ([], "there are no Xen notes"),
        (PV_NOTES, "there is no note PADDR_ENTRY of the draft's (type 20)"),
        ([note(20, 0x1002000), OFFSET], "PADDR_ENTRY, 0x1002000, lies outside the kernel"),
        ([note(20, 0xFFFFFF), OFFSET], "PADDR_ENTRY, 0xffffff, lies outside the kernel"),
        ([note(20, b"abc"), OFFSET], "the note draft PADDR_ENTRY has 3 bytes, which is no number"),
        ([ENTRY, note(21, b"abc")], "the note draft PADDR_OFFSET has 3 bytes, which is no number"),
        ([ENTRY, note(21, 0x2000000)], "the kernel wants to be at 0xffffffffff000000-"),
        ([ENTRY, OFFSET, note(10, "!dom0")], "FEATURES requires dom0"),
    ],
)
def test_what_has_no_entry(load, notes, reason):
    found = load(kernel(notes))
    assert DRAFT.verdict(found).reason.startswith(reason)
    with pytest.raises(ImageError, match="cannot boot as hvm-draft-a"):
        DRAFT.build(found, DomainConfig(64 * MIB))


@pytest.mark.parametrize(
    ("memory", "config", "error", "words"),
    [
        (64, {"cmdline": b"x" * 1024}, ImageError, "1024 bytes; hvm-draft-a takes at most 1023"),
        (64, {"modules": (Module(b"x"),)}, UsageError, "takes one module"),
        (64, {"subarch": 2}, UsageError, "--subarch: hvm-draft-a has no boot_params"),
        (8, {}, FitError, "give the domain more memory"),
    ],
)
def test_what_cannot_be_had(build, memory, config, error, words):
    with pytest.raises(error, match=words):
        build(memory=memory * MIB, **config)


def test_auto_never_takes_it_but_names_it(load):
    with pytest.raises(ImageError, match="it can with --entry hvm-draft-a"):
        choose(load(kernel([ENTRY])))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main([*arguments])
    return code, *capsys.readouterr()


def test_inspect_names_the_notes(tmp_path, capsys):
    path = tmp_path / "kernel"
    path.write_bytes(kernel([note(99, 0x1000010), note(98, 0x0)]))
    code, out, _ = run(capsys, "inspect", str(path))
    assert code == 7 and "there is no note PADDR_ENTRY of the draft's (type 20)" in out
    assert "type 0x63            1000000100000000  (ignored: Xen does not know it)\n" in out
    code, out, _ = run(capsys, "inspect", str(path), "--draft-notes", "99,98")
    assert code == 0 and "hvm-draft-a     yes: 0x1000000 to 0x1002000, entry 0x1000010\n" in out
    assert "  draft PADDR_ENTRY    0x1000010\n  draft PADDR_OFFSET   0x0\n" in out


def test_a_mistake_is_one_line_and_7(tmp_path, capsys):
    path = tmp_path / "kernel"
    path.write_bytes(kernel([ENTRY, OFFSET]))
    draft = ("--entry", "hvm-draft-a")
    for arguments, words in (
        (("--entry", "pvh"), "cannot boot as pvh: there is no PHYS32_ENTRY note"),
        ((*draft, "--draft-notes", "22,23"), "no note PADDR_ENTRY of the draft's (type 22)"),
        ((*draft, "--draft-notes", ""), "--draft-notes : give the types"),
        ((*draft, "--draft-notes", "20"), "--draft-notes 20: give the types"),
        ((*draft, "--draft-notes", "20,20"), "--draft-notes 20,20: give the types"),
        ((*draft, "--draft-notes", "4294967296,1"), "--draft-notes 4294967296,1: give the types"),
        (("--draft-notes", "20,21"), "--draft-notes: only --entry hvm-draft-a reads"),
        ((*draft, "--subarch", "xen"), "--subarch: hvm-draft-a has no boot_params"),
        ((*draft, "--module", str(path)), "takes one module"),
    ):
        code, out, err = run(capsys, "run", str(path), *arguments)
        assert (code, out, err.count("\n")) == (7, "", 1) and words in err, err
