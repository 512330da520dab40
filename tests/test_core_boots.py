"""A Linux that panics, and its core as drgn, crash and gdb read it.

What needs the kernel's debug information, which is large, is skipped unless somebody has fetched
it: python guests/fetch.py debian-cloud-amd64-debug.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from guests import fetch

PANIC = """#!/bin/sh
mount -t proc proc /proc
echo c > /proc/sysrq-trigger
"""
DEBUG = "debian-cloud-amd64-debug"
BANNER = b"Linux version 6.1"
FRAMES = ["xen_reboot", "panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger"]
STACK = "print(prog.crashed_thread().stack_trace())"


@pytest.fixture(scope="module")
def panicked(tmp_path_factory, guest_image):
    """A function from an entry to the core of a kernel that panicked."""

    @cache
    def panicked(mode):
        folder = tmp_path_factory.mktemp(mode)
        (folder / "init").write_text(PANIC)
        (folder / "init").chmod(0o755)
        words = ["--init", folder / "init", "--busybox", guest_image("busybox"), "--mode", mode]
        words += ["--cmdline", "console=hvc0 quiet", "--core", folder / "core", "--timeout", "300"]
        command = [sys.executable, "-m", "xenemu", "run", guest_image("debian-cloud-amd64")]
        result = subprocess.run(
            [*map(str, command), *map(str, words)],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == 4, result.stderr.decode()
        return folder / "core"

    return panicked


@pytest.fixture
def vmlinux():
    found = fetch.cached(DEBUG)
    kernel = fetch.cached("debian-cloud-amd64")
    if not found or not kernel or found.version != kernel.version:
        pytest.skip(f"560 MiB that nobody needs else: python guests/fetch.py {DEBUG}")
    return found.path


def noted(core):
    """The lines of a core's VMCOREINFO."""
    with core.open("rb") as file:
        for segment in ELFFile(file).iter_segments():
            if segment["p_type"] == "PT_NOTE":
                for note in segment.iter_notes():
                    if note["n_name"] == "VMCOREINFO":
                        return dict(
                            line.split("=", 1) for line in note["n_descdata"].decode().splitlines()
                        )
    return {}


def asked(*command, text=""):
    result = subprocess.run(
        list(map(str, command)), capture_output=True, check=False, input=text, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_drgn_knows_it_for_a_linux_and_reads_its_memory(panicked, mode):
    drgn = pytest.importorskip("drgn")
    core = panicked(mode)
    prog = drgn.Program()
    prog.set_core_dump(core)
    assert prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    names = int(noted(core)["SYMBOL(init_uts_ns)"], 16)
    assert b"Linux\0" in prog.read(names, 256)
    assert prog.read(int(noted(core)["SYMBOL(swapper_pg_dir)"], 16), 4096).strip(b"\0")


@pytest.mark.parametrize("mode", ["pv", "pvh"])
def test_drgn_and_gdb_show_how_it_came_to_panic(panicked, vmlinux, mode, tmp_path):
    pytest.importorskip("drgn")
    (tmp_path / "stack.py").write_text(STACK)
    command = [Path(sys.executable).with_name("drgn"), "-q", "-s", vmlinux, "-c", panicked(mode)]
    by_drgn = re.findall(r"^#\d+ +(\w+)", asked(*command, tmp_path / "stack.py"), re.MULTILINE)
    # gdb shows the innermost frame when it opens the core, and again in the backtrace.
    words = ["-nx", "-batch", "-ex", "bt", vmlinux, panicked(mode)]
    by_gdb = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+)", asked("gdb", *words), re.MULTILINE)[1:]
    count = by_drgn.index("do_syscall_64") + 1
    assert by_drgn[:count] == by_gdb[:count]
    assert [name for name in by_drgn if name in FRAMES] == FRAMES


@pytest.mark.skipif(shutil.which("crash") is None, reason="there is no crash (Debian: crash)")
def test_crash_shows_how_it_came_to_panic(panicked, vmlinux):
    shown = asked("crash", "-s", vmlinux, panicked("pvh"), text="bt\nquit\n")
    names = re.findall(r"^ *#\d+ \[\w+\] (\w+)", shown, re.MULTILINE)
    assert names[:3] == ["panic", *FRAMES[2:4]]
