"""One run of everything: Debian's kernels, GRUB, the guests of guests/, and one of each failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from junitparser import JUnitXml

import elfwriter
from guests.build import ENVIRONMENTS, build, guests
from tinyguest import BLOCK, UNDEFINED, kernel
from xenemu.smoke.plan import load_plan
from xenemu.smoke.verdict import Verdict

HERE = Path(__file__).parent
IMAGES = [
    *("debian-amd64", "debian-cloud-amd64", "debian-6.12-cloud-amd64", "debian-686-pae"),
    *("grub-x86_64-xen", "grub-i386-xen", "grub-i386-xen_pvh", "busybox", "busybox-i386"),
]
# What is judged otherwise than its name says.
VERDICTS = {
    "panic before any console pv": "panic",
    "panic before any console pvh": "panic",
    "panic before any console i386": "panic",
    "quiet asleep": "quiet",
}
# What the second run boots again, one job at a time.
AGAIN = ("linux debian-cloud-amd64 pvh", "grub grub-i386-xen", "init-exit", "quiet asleep", "tests")

# How a guest of our own ends that has such an exit code.
ENDS = {0: "poweroff", 4: "watchdog", 5: "refused"}
# And those that end in another way; a plan has no --on-suspend.
OWN_ENDS = {"suspend": "suspend", "wild-write": "panic"}


def prepare(place: Path, guest_image) -> Path:
    """Put the plan and all that it names into a directory."""
    for name in IMAGES:
        (place / name).symlink_to(guest_image(name))
    shutil.copytree(HERE / "init", place / "init")
    (place / "truncated").write_bytes(guest_image("debian-amd64").read_bytes()[:1_000_000])
    (place / "refused").write_bytes(kernel(UNDEFINED))
    (place / "blocked").write_bytes(kernel(BLOCK))
    segment = elfwriter.Phdr(UNDEFINED, memsz=0x2000)
    note = elfwriter.note(18, 0x100_0000, width=4)  # PHYS32_ENTRY
    entry = elfwriter.Phdr(note, elfwriter.PT_NOTE, paddr=0, vaddr=0)
    (place / "triple-fault").write_bytes(elfwriter.elf([segment, entry]))
    plan = place / "matrix.toml"
    plan.write_text((HERE / "matrix.toml").read_text() + "".join(_tables(place)))
    return plan


def _tables(place: Path):
    for name, guest in guests().items():
        for environment in guest.environments:
            image = build(guest, ENVIRONMENTS[environment], place / f"{name}-{environment}")
            initrd = f'initrd = "{guest.folder / guest.initrd}"\n' if guest.initrd else ""
            lines = guest.expected(environment).splitlines()
            last = f"--- {name}.*" if guest.options else lines[-1]
            ended = OWN_ENDS.get(name, ENDS[guest.exit])
            yield (
                f'\n[[boot]]\nname = "guest {image.name}"\nkernel = "{image.name}"\n'
                f'mode = "{ENVIRONMENTS[environment].mode}"\nmemory = "{guest.memory}"\n'
                f"vcpus = {guest.vcpus}\n"
                f'cmdline = "{guest.cmdline}"\nexpect = "^{last}$"\n'
                f'exit = "{ended}"\n{initrd}'
            )


@pytest.fixture(scope="module")
def place(guest_image, tmp_path_factory):
    place = tmp_path_factory.mktemp("matrix")
    prepare(place, guest_image)
    return place


def run(place, plan, *options):
    return subprocess.run(
        [sys.executable, "-m", "xenemu", "smoke", place / plan, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "GITHUB_STEP_SUMMARY": ""},
        check=False,
    )


@pytest.fixture(scope="module")
def matrix(place):
    """The finished command; its results are beside the plan."""
    outputs = ("--junit", place / "junit.xml", "--json", place / "kcidb.json")
    return run(place, "matrix.toml", "-j", "2", *outputs, "--log-dir", place / "logs")


def verdicts(place):
    tests = json.loads((place / "kcidb.json").read_text())["tests"]
    return {
        test["environment"]["comment"].partition(", ")[2]: test["misc"]
        for test in tests
        if test["path"] == "boot"
    }


def expected(name):
    words = {verdict.value for verdict in Verdict}
    return VERDICTS.get(name, name if name in words else "pass")


def test_every_verdict_is_right(matrix, place):
    found = {name: misc["verdict"] for name, misc in verdicts(place).items()}
    plan = [boot.name for boot in load_plan(place / "matrix.toml")]
    assert found == {name: expected(name) for name in plan}, matrix.stdout


def test_the_exit_code_is_that_of_the_worst(matrix):
    assert matrix.returncode == 7, matrix.stderr


def test_junit_agrees(matrix, place):
    suites = {suite.name: suite for suite in JUnitXml.fromfile(str(place / "junit.xml"))}
    for name, misc in verdicts(place).items():
        boot = next(case for case in suites[name] if case.name == "boot")
        kinds = [type(result).__name__ for result in boot.result]
        wrong = ["Error"] if misc["verdict"] in ("image", "fit") else ["Failure"]
        assert kinds == ([] if misc["verdict"] == "pass" else wrong), name
    assert [case.name for case in suites["tests"]] == ["boot", "addition", "division"]


def test_what_was_captured(matrix, place):
    captures = verdicts(place)["linux debian-6.12-cloud-amd64 pvh"]["captures"]
    assert captures == {"version": "6.12", "sum": "55"}


@pytest.mark.parametrize("mode", ["pv", "pvh", "i386"])
def test_a_panic_before_any_console_is_told_by_the_hypervisor(matrix, place, mode):
    name = f"panic before any console {mode}"
    misc = verdicts(place)[name]
    assert "VFS: Unable to mount root fs" in misc["reason"]
    log, report = (
        (place / "logs" / f"{name.replace(' ', '-')}.{suffix}").read_text()
        for suffix in ("log", "report")
    )
    assert (log + report).count("Kernel panic - not syncing: VFS") == 1  # a PV kernel has hvc0
    assert " panic+0x" in report.partition("Backtrace:")[2]
    # panic=100000: it would have waited for a day of its time.
    assert float(misc["virtual_s"]) < 5


def test_another_run_has_the_same_consoles(matrix, place):
    boots = [boot.name for boot in load_plan(place / "matrix.toml")]
    for name in AGAIN:
        shard = f"{boots.index(name) + 1}/{len(boots)}"
        run(place, "matrix.toml", "--shard", shard, "-j", "1", "--log-dir", place / "again")
    for log in (place / "again").glob("*.log"):
        assert log.read_bytes() == (place / "logs" / log.name).read_bytes(), log.name
    assert len(list((place / "again").glob("*.log"))) == len(AGAIN)
