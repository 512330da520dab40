"""What the documents promise: examples run as shown, and what is named exists.

A block marked ``console`` is run, command by command, in a directory with the images that the
README names. The lines shown must be printed in that order; ``...`` on a line of its own stands for
any lines, at a line's end for its rest, and one number is as good as another. A command ends
with exit code 0, or with the one that ``echo $?`` shows after it. A block of TOML or Python that
begins with a comment that is a file's name is that file.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import click
import pytest
import typer

import xenemu
from gdbtools import need_gdb
from guests import initramfs
from guests.build import ENVIRONMENTS, build, guests
from programs import need
from xenemu.cli import parser
from xenemu.gdb.monitor import COMMANDS as MONITOR_COMMANDS
from xenemu.outcome import EXIT_BUG, EXIT_CODES, EXIT_FIT, EXIT_IMAGE
from xenemu.smoke.guest import Found, Guest, Xenstore
from xenemu.smoke.ktap import Case
from xenemu.smoke.plan import READERS
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict

ROOT = Path(__file__).parents[2]
README, ARCHITECTURE = ROOT / "README.md", ROOT / "ARCHITECTURE.md"
DOCUMENTS = [
    *(README, ARCHITECTURE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
IMAGES = {  # what the examples call an image: its name in guests/images.toml
    "vmlinuz": "debian-cloud-amd64",
    "grub-x86_64-xen.bin": "grub-x86_64-xen",
    "grub-i386-xen_pvh.bin": "grub-i386-xen_pvh",
    "busybox": "busybox",
    "systemd-bootx64.efi": "systemd-boot",
    "modules": "debian-cloud-amd64-modules",
    "xen-shim": "xen-shim",
}
PLUGIN = "xenemu.smoke.pytest_plugin"
FILES = ("toml", "python", "ini")
TIMEOUT = 120  # seconds, for a xenemu that hangs
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# All that a reader has: commands, hosts, and directories of any Debian machine or guest.
COMMANDS = {"make", "pip", "xenemu", "python", "python3", "tar", "printf", "apt-get", "echo", "gdb"}
COMMANDS |= {"truncate", "mkfs.ext4", "mount"}
SHELL = {"for", "done"}
COMMANDS |= {"mkdir", "cp", "chmod", "tshark"}
HOSTS = {"keepachangelog.com", "semver.org"}
DIRECTORIES = {"bin", "boot", "dev", "etc", "init", "mnt", "proc", "root", "sbin", "sys"}


@dataclass
class Step:
    """A command of a block, and the lines that are shown for it."""

    command: str
    shown: list[str]


def _blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The line and the text of each fenced block of one language."""
    text = path.read_text()
    return [
        (text[: block.start()].count("\n") + 1, block[2])
        for block in FENCED.finditer(text)
        if block[1] == language
    ]


def _steps(text: str) -> list[Step]:
    steps: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        else:
            steps[-1].shown.append(line)
    return steps


EXAMPLES = [
    pytest.param(text, id=f"{path.name}:{line}")
    for path in DOCUMENTS
    for line, text in _blocks(path, "console")
]


@pytest.fixture(scope="session")
def workplace(guest_image, tmp_path_factory) -> Path:
    """A directory with the images, a guest of our own, and a `xenemu`."""
    place = tmp_path_factory.mktemp("examples")
    for name, image in IMAGES.items():
        (place / name).symlink_to(guest_image(image))
    for name in ("race", "wild-write"):
        build(guests()[name], ENVIRONMENTS["pv64"], place / name)
    init = initramfs.DEFAULT_INIT.read_bytes()
    archive = initramfs.build(guest_image("busybox").read_bytes(), init)
    for path, language in itertools.product(DOCUMENTS, FILES):
        for _, text in _blocks(path, language):
            if text.startswith("# "):
                (place / text.splitlines()[0][2:]).write_text(text)
    (place / "initrd.gz").write_bytes(archive)
    for name, arguments in (("xenemu", "-m xenemu"), ("python", "")):
        command = place / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        command.chmod(0o755)
    return place


def _run(command: str, place: Path) -> tuple[int, list[str]]:
    """The exit code, and the lines of standard output and then of standard error."""
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    if not any(point.value == PLUGIN for point in entry_points(group="pytest11")):
        environment["PYTEST_ADDOPTS"] = f"-p {PLUGIN}"  # xenemu is not installed here
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    streams = (CONTROL.sub("", s.decode(errors="replace")) for s in (result.stdout, result.stderr))
    return result.returncode, [line for stream in streams for line in stream.splitlines()]


def _plain(line: str) -> str:
    """A line without what may differ from kernel to kernel: numbers and spacing."""
    return " ".join(re.sub(r"\d+", "#", line).split())


def _missing(shown: list[str], printed: list[str]) -> str | None:
    """The first of the lines shown that was not printed where it is shown."""
    left, anywhere = [_plain(line) for line in printed], False
    for line in shown:
        wanted = _plain(line)
        if wanted == "...":
            anywhere = True
            continue
        start = wanted.removesuffix("...").rstrip()
        places = [
            at
            for at, candidate in enumerate(left if anywhere else left[:1])
            if candidate == wanted or (start != wanted and candidate.startswith(start))
        ]
        if not places:
            return line
        left, anywhere = left[places[0] + 1 :], False
    return None if anywhere or not any(left) else f"the end before {left[0]!r}"


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_prints_what_is_shown(text, workplace):
    code = 0
    steps = _steps(text)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.command == "echo $?":
            assert step.shown == [str(code)]
            continue
        if step.command.startswith("gdb "):
            need_gdb()
        if " --net user" in step.command:
            need("passt")
        if step.command.startswith("tshark "):
            need("tshark")
        code, printed = _run(step.command, workplace)
        assert _missing(step.shown, printed) is None, "\n".join(printed)
        assert code == 0 or (following and following.command == "echo $?"), printed


def _shown_only() -> list[tuple[str, str]]:
    """The commands of xenemu that no test runs as shown: in two terminals, or of rare kernels."""
    found = []
    for path, language in itertools.product(DOCUMENTS, ("", "sh")):
        for line, text in _blocks(path, language):
            for command in text.replace("\\\n", " ").splitlines():
                if (
                    command.strip().removeprefix("$ ").startswith("xenemu ")
                    and "..." not in command
                ):
                    found.append((f"{path.name}:{line}", command.strip().removeprefix("$ ")))
    return found


def test_commands_that_are_only_shown_are_understood():
    commands = typer.main.get_command(parser()).commands
    checked = 0
    for where, line in _shown_only():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        try:
            commands[words[1]].make_context(words[1], words[2:])
        except click.ClickException as error:
            pytest.fail(f"{where}: {line}: {error.format_message()}")
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        (["a 1"], ["a  22"], None),
        (["a"], ["a", "b"], "the end before 'b'"),
        (["a", "..."], ["a", "b"], None),
        (["...", "b ..."], ["a", "b c"], None),
        (["a", "c"], ["a", "b", "c"], "c"),
        (["...", "b", "...", "a"], ["a", "b"], "a"),
    ],
)
def test_lines_are_compared_in_order(shown, printed, missing):
    assert _missing(shown, printed) == missing


def test_every_subcommand_has_an_example():
    shown = [step.command for _, text in _blocks(README, "console") for step in _steps(text)]
    for name in typer.main.get_command(parser()).commands:
        assert any(f"xenemu {name}" in command for command in shown), name


def test_jobs_call_what_there_is():
    command = typer.main.get_command(parser()).commands["smoke"]
    known = {option for parameter in command.params for option in parameter.opts}
    jobs = [text for path in DOCUMENTS for _, text in _blocks(path, "yaml")]
    calls = [line for text in jobs for line in text.splitlines() if "xenemu smoke" in line]
    assert len(calls) == len(jobs)
    for call in calls:
        assert set(re.findall(r"--[a-z-]+", call)) <= known


def test_ci_md_has_every_key_verdict_and_code():
    text = (ROOT / "docs" / "ci.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == set(READERS) | {verdict.value for verdict in Verdict}
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        words = [word for word in re.findall(r"`([\w-]+)`", cells[0])]
        if re.fullmatch(r"\d+(, \d+)?", cells[1]):
            codes = sorted({Verdict(word).exit_code for word in words})
            assert cells[1] == ", ".join(map(str, codes))


def test_ci_md_names_what_results_have():
    result = (ROOT / "docs" / "ci.md").read_text().partition("A result has these:")[2]
    named = set(re.findall(r"`(\w+)`", result.partition("What does not come")[0]))
    parts = (Result, Finding, Case, Verdict.PASS)
    assert named <= {*chain(*map(dir, parts)), *chain(*map(_fields, parts)), "expect"}


def test_the_python_page_has_all_of_the_api():
    text = (ROOT / "docs" / "python.md").read_text()
    rows = text.partition("\n## A guest\n")[2].partition("```")[0]
    named = {word for words in re.findall(r"`([\w.]+)[`(]", rows) for word in words.split(".")}
    has = {name for name in dir(Guest) if not name.startswith("_")} | {"result"}
    theirs = {*chain(*map(dir, (Result, Xenstore))), *chain(*map(_fields, (Found, Result)))}
    assert named - {"timeout", "Found", "Result", "snapshot"} <= has | theirs
    assert has - named == {"keeps_console"}  # the plugin's
    assert {name for name in xenemu.__all__ if name not in text} == set()


def _fields(kind: object) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def test_readme_has_every_exit_code():
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(), re.MULTILINE)}
    assert codes == {*EXIT_CODES.values(), EXIT_IMAGE, EXIT_FIT, EXIT_BUG}


def test_the_debugging_page_has_every_monitor_command():
    text = (ROOT / "docs" / "debugging.md").read_text()
    for name in MONITOR_COMMANDS:
        assert f"`monitor {name}" in text, name


def _tree() -> list[Path]:
    """The paths that ARCHITECTURE.md's first block names; two more spaces are a level down."""
    paths, parents = [], [ROOT]
    for line in _blocks(ARCHITECTURE, "")[0][1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth + 1 :] = [parents[depth] / name]
        paths.append(parents[-1])
    return paths


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in _tree()])
def test_the_tree_is_as_architecture_shows_it(path):
    assert path.exists()


def test_architecture_shows_every_package():
    packages = {init.parent for init in (ROOT / "xenemu").glob("*/__init__.py")}
    assert packages <= set(_tree())


@pytest.mark.parametrize("path", [pytest.param(p, id=p.name) for p in DOCUMENTS])
def test_links_and_paths_lead_somewhere(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:xenemu|hypercalls|guests|tests|bench|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", [pytest.param(p, id=p.name) for p in DOCUMENTS])
def test_documents_name_only_what_a_reader_has(path):
    text = path.read_text()
    assert set(re.findall(r"https?://([^/\s)>]+)", text)) <= HOSTS
    assert set(re.findall(r"(?<![\w./~:)\]])/([a-z]\w*)", text)) <= DIRECTORIES
    commands = [step.command for _, block in _blocks(path, "console") for step in _steps(block)]
    commands += [line for _, block in _blocks(path, "sh") for line in block.splitlines()]
    for command in commands:
        if not command.startswith(" "):  # a continued line
            assert command.split()[0] in COMMANDS | SHELL, command
