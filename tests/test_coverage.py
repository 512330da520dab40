"""coverage: what ran, by function and by line, as each single instruction says; and its files."""

from __future__ import annotations

import gc
import os
import shutil
import struct
import subprocess
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from lcov_cobertura import LcovCobertura

from guests.build import ENVIRONMENTS, GUESTS, build, guests
from unattended import Unattended
from xenemu import coverage, cpu
from xenemu.coverage import Block, Coverage
from xenemu.hv.building import DomainConfig
from xenemu.image import Image, load
from xenemu.image.lines import LineTable
from xenemu.machine import Machine
from xenemu.outcome import End, Outcome
from xenemu.peek import Code

MAIN = "guest_main"
UNREADABLE = {"hypercall_page", "_start"}  # Xen writes the one; the other changes the mode


@dataclass
class OneByOne(Unattended):
    """Lets the guest run an instruction at a time, and notes where each is."""

    machine: Machine

    def __post_init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.machine.slice_ns = 1

    def check(self) -> Outcome | None:
        self.seen.append(self.machine.engine.rip)
        return None


@pytest.fixture(scope="module", params=guests()["hello"].environments)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The guest hello, as each kind of domain."""
    path = tmp_path_factory.mktemp("hello") / request.param
    return load(build(guests()["hello"], ENVIRONMENTS[request.param], path))


@pytest.fixture(scope="module")
def blocks(kernel: Image) -> list[Block]:
    """What ran of it."""
    recorded = machine(kernel)
    log = recorded.record_blocks()
    assert recorded.run(Unattended()).end is End.POWEROFF
    return log.blocks()


def machine(image: Image) -> Machine:
    return Machine(image, DomainConfig(64 << 20, b"hello=world  two words"))


def test_what_ran_is_what_single_instructions_say(kernel: Image, blocks: list[Block]) -> None:
    ran = Coverage.of(blocks, kernel, Code(kernel))

    slow = machine(kernel)
    steps = OneByOne(slow)
    assert slow.run(steps).end is End.POWEROFF
    visited = {coverage.linked(rip, kernel) for rip in steps.seen[:-1]}  # the last never ran
    names = {s.name for rip in visited if (s := kernel.symbols.lookup(rip))}
    assert {function.name for function in ran.functions} == names
    assert MAIN in names
    assert all(kernel.symbols.lookup(part.start) for part in ran.ranges)
    inside = {rip for rip in visited if kernel.symbols.lookup(rip)}
    assert [hex(rip) for rip in sorted(inside) if not any(rip in part for part in ran.ranges)] == []
    for function in ran.functions:
        if function.name in UNREADABLE:
            continue
        own = range(function.vaddr, function.vaddr + function.size)
        covered = sum(address in own for part in ran.ranges for address in part)
        assert covered == sum(length(kernel, rip) for rip in inside if rip in own), function.name


def length(image: Image, rip: int) -> int:
    """The bytes of the instruction at `rip`."""
    segment = next(s for s in image.segments if 0 <= rip - s.vaddr < len(s.data))
    mode = capstone.CS_MODE_64 if image.elf_class == 64 else capstone.CS_MODE_32
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    return next(decoder.disasm(bytes(segment.data[rip - segment.vaddr :][:15]), rip)).size


def test_drcov_has_each_block_and_module(kernel: Image, blocks: list[Block]) -> None:
    file = coverage.drcov(blocks, kernel, Code(kernel))
    head, _, table = file.partition(b" bbs\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["DRCOV VERSION: 2", "DRCOV FLAVOR: xenemu"]
    bases = [int(line.split(",")[1], 16) for line in lines[4:-1]]
    assert lines[2] == f"Module Table: version 2, count {len(bases)}"
    assert lines[-1] == f"BB Table: {len(table) // 8}"
    found = {
        (bases[module] + offset, size) for offset, size, module in struct.iter_unpack("<IHH", table)
    }
    wanted = {(coverage.linked(block.pc, kernel), block.size) for block in blocks}
    assert found == {(pc, size) for pc, size in wanted if kernel.symbols.lookup(pc)}


def test_lcov_has_lines_where_there_is_dwarf(kernel: Image, blocks: list[Block]) -> None:
    lines = LineTable.read(Path(kernel.path))
    file = coverage.lcov([blocks], kernel, Code(kernel), lines)
    source = (GUESTS / "hello" / "main.c").read_text().splitlines()
    told = sections(file)[str(GUESTS / "hello" / "main.c")]
    hit = {source[int(line) - 1].strip() for line, count in told["DA"] if count != "0"}
    missed = {source[int(line) - 1].strip() for line, count in told["DA"] if count == "0"}
    assert "success();" in hit
    assert 'failure("XENVER_version refused");' in missed
    assert told["FNDA"] == [("1", MAIN)]


def test_lcov_without_dwarf_has_functions_only(kernel: Image, blocks: list[Block]) -> None:
    file = coverage.lcov([blocks], kernel, Code(kernel), None)
    ((source, told),) = sections(file).items()
    assert Path(source) == Path(kernel.path)
    assert ("1", MAIN) in told["FNDA"]
    assert ("0", "failure") in told["FNDA"]
    assert "DA" not in told


def test_broken_dwarf_has_fewer_lines_and_no_exception(
    kernel: Image, blocks: list[Block], tmp_path: Path
) -> None:
    whole, broken = Path(kernel.path).read_bytes(), tmp_path / "broken"
    with open(kernel.path, "rb") as file:
        parts = [s for s in ELFFile(file).iter_sections() if s.name.startswith(".debug")]
    ran = Coverage.of(blocks, kernel, Code(kernel)).ranges
    sound = LineTable.read(Path(kernel.path)).of(ran)
    found = []
    for part in parts:
        for at in range(0, min(part["sh_size"], 24), 4):
            changed = bytearray(whole)
            changed[part["sh_offset"] + at] ^= 0x7F
            broken.write_bytes(changed)
            lines = LineTable.read(broken)
            found.append(lines.of(ran) if lines else {})
    assert sound in found
    assert min(map(len, found)) < len(sound)


def test_a_name_of_a_file_stays_on_its_line(kernel: Image, blocks: list[Block]) -> None:
    renamed = replace(kernel, path="a\nend_of_record\udcff")
    assert "a\ufffdend_of_record" in coverage.lcov([blocks], renamed, Code(kernel), None)
    assert "a\ufffdend_of_record".encode() in coverage.drcov(blocks, renamed, Code(kernel))


def sections(file: str) -> dict[str, dict[str, list[tuple[str, ...]]]]:
    """By source file, what each kind of line of an lcov file says."""
    found: dict[str, dict[str, list[tuple[str, ...]]]] = {}
    for text in file.split("end_of_record\n")[:-1]:
        section: dict[str, list[tuple[str, ...]]] = {}
        for line in text.splitlines():
            kind, _, rest = line.partition(":")
            section.setdefault(kind, []).append(tuple(rest.split(",")))
        found[section["SF"][0][0]] = section
    return found


def test_a_reader_of_lcov_files_takes_it(kernel: Image, blocks: list[Block]) -> None:
    lines = LineTable.read(Path(kernel.path))
    file = coverage.lcov([blocks], kernel, Code(kernel), lines)
    summary = LcovCobertura(file).parse()["summary"]
    assert summary["lines-covered"] > 0
    assert summary["lines-covered"] < summary["lines-total"]


def test_files_of_several_boots_become_one(kernel: Image, blocks: list[Block]) -> None:
    lines = LineTable.read(Path(kernel.path))
    all_ran, none_did = (coverage.lcov([own], kernel, Code(kernel), lines) for own in (blocks, []))
    twice = sections(coverage.merged([all_ran, none_did, all_ran]))
    once = sections(coverage.merged([all_ran]))
    assert once == sections(all_ran)
    main = str(GUESTS / "hello" / "main.c")
    assert [number for number, _ in twice[main]["FNDA"]] == ["2"]
    assert {count for _, count in twice[main]["DA"]} == {"0", "2"}
    assert twice[main]["LH"] == once[main]["LH"]


@pytest.mark.skipif(
    not shutil.which("genhtml") and "CI" not in os.environ, reason="genhtml (lcov) is not installed"
)
def test_genhtml_shows_it(kernel: Image, blocks: list[Block], tmp_path: Path) -> None:
    lines = LineTable.read(Path(kernel.path))
    (tmp_path / "ran.info").write_text(coverage.lcov([blocks], kernel, Code(kernel), lines))
    shown = subprocess.run(
        ["genhtml", "--output-directory", tmp_path / "shown", tmp_path / "ran.info"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "lines......: " in shown.stdout
    assert (tmp_path / "shown" / "index.html").is_file()


# By vcpu.

SEVERAL = [
    (name, each) for name in ("ap-start", "ap-start-pvh") for each in guests()[name].environments
]


@pytest.fixture(scope="module", params=SEVERAL, ids="-".join)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A guest whose vcpu 0 starts others."""
    name, environment = request.param
    path = tmp_path_factory.mktemp(name) / environment
    return load(build(guests()[name], ENVIRONMENTS[environment], path))


def record(image: Image, by_vcpu: bool) -> tuple[list[Block], int]:
    """What runs of it, and how many instructions."""
    config = DomainConfig(64 << 20, vcpus=3 if "ap-start-pvh" in image.path else 2)
    recorded = Machine(image, config)
    log = recorded.record_blocks(by_vcpu)
    assert recorded.run(Unattended()).end is End.POWEROFF
    return log.blocks(), recorded.engine.instructions


def ran_by(blocks: list[Block], image: Image) -> list[Coverage]:
    """What each vcpu ran, in their order."""
    return [
        Coverage.of([block for block in blocks if block.vcpu == vcpu], image, Code(image))
        for vcpu in range(1 + max(block.vcpu for block in blocks))
    ]


def test_each_vcpu_has_what_it_ran(several: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth: at each turn, all blocks are forgotten, so that the next vcpu's are noted."""

    def turn_to(log: cpu.coverage.BlockLog, vcpu: int) -> None:
        log._shared.vcpu = vcpu
        log._shim.forget_blocks()

    blocks, instructions = record(several, by_vcpu=True)
    found = ran_by(blocks, several)
    monkeypatch.setattr(cpu.coverage.BlockLog, "turn_to", turn_to)
    truth, same = record(several, by_vcpu=True)
    assert same == instructions
    for own, true in zip(found, ran_by(truth, several), strict=True):
        assert own.ranges == true.ranges
        assert [f.name for f in own.functions] == [f.name for f in true.functions]
    names = [{function.name for function in own.functions} for own in found]
    assert len(names) >= 2
    assert all(MAIN not in others for others in names[1:])
    assert all(others - names[0] for others in names[1:])


def test_together_they_ran_what_is_noted_without_them(several: Image) -> None:
    blocks, instructions = record(several, by_vcpu=True)
    plain, same = record(several, by_vcpu=False)
    assert same == instructions
    assert {block.vcpu for block in plain} == {0}
    assert ran_by(plain, several)[0].ranges == Coverage.of(blocks, several, Code(several)).ranges


def test_lcov_has_a_test_for_each_vcpu(several: Image) -> None:
    blocks, _ = record(several, by_vcpu=True)
    vcpus = sorted({block.vcpu for block in blocks})
    parts = [[block for block in blocks if block.vcpu == vcpu] for vcpu in vcpus]
    lines = LineTable.read(Path(several.path))
    file = coverage.lcov(parts, several, Code(several), lines, by_vcpu=True)
    tests = dict.fromkeys(line for line in file.splitlines() if line.startswith("TN:"))
    assert list(tests) == [f"TN:vcpu{n}" for n in vcpus]
    halves = file.partition("TN:vcpu1\n")
    assert f"FNDA:1,{MAIN}\n" in halves[0]
    assert f"FNDA:1,{MAIN}\n" not in halves[2]
    twice = coverage.merged([file, file])
    assert list(dict.fromkeys(line for line in twice.splitlines() if line[:2] == "TN")) == [*tests]
    assert f"FNDA:2,{MAIN}\n" in twice


def test_a_log_that_nobody_keeps_is_kept_by_its_engine(kernel: Image) -> None:
    recorded = machine(kernel)
    log = weakref.ref(recorded.record_blocks())
    gc.collect()
    assert log() is not None


def test_another_engine_notes_nothing(kernel: Image) -> None:
    log = machine(kernel).record_blocks()
    machine(kernel).run(Unattended())
    assert log.blocks() == []


def test_a_guest_that_makes_code_all_the_time_fills_the_log_once(
    kernel: Image, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.coverage, "ROOM", 4)
    monkeypatch.setattr(cpu.coverage, "CHUNKS", 2)
    monkeypatch.setattr(cpu.coverage, "MOST", 20)
    recorded = machine(kernel)
    log = recorded.record_blocks()
    assert coverage.missing(log) == ""
    assert recorded.run(Unattended()).end is End.POWEROFF
    kept = log.blocks()
    assert 20 <= len(kept) < 28
    assert kept == blocks[: len(kept)]
    assert log.ended == kept[-1].at
    assert f"after {log.ended} instructions" in coverage.missing(log)


def test_an_error_as_blocks_are_taken_stops_the_run(
    kernel: Image, blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(log: cpu.coverage.BlockLog) -> None:
        raise MemoryError

    monkeypatch.setattr(cpu.coverage, "ROOM", 4)
    monkeypatch.setattr(cpu.coverage.BlockLog, "_take", exhausted)
    recorded = machine(kernel)
    recorded.record_blocks()
    with pytest.raises(MemoryError):
        recorded.run(Unattended())


def test_nothing_is_noted_after_the_log_is_closed(kernel: Image) -> None:
    recorded = machine(kernel)
    log = recorded.record_blocks()
    log.close()
    recorded.run(Unattended())
    assert log.blocks() == []
