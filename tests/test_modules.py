"""What a report and --explain say of a real kernel's modules is what that kernel says itself."""

from __future__ import annotations

import re

import pytest

from guests import fetch
from moduleguest import MODULES, module_initramfs

BOOTS = [
    ("debian-cloud-amd64", "pv"),
    ("debian-amd64", "pvh"),
    ("debian-6.12-cloud-amd64", "pvh"),
]

TRACED = re.compile(r"^\[.{13}  (?:<\w+>)?(\w\S*\+0x\S+)$", re.MULTILINE)  # not what has a ?


@pytest.mark.parametrize(("kernel", "mode"), BOOTS)
def test_a_module_that_panics(kernel, mode, guest_image, xenemu_run, tmp_path):
    path = guest_image(kernel)
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(module_initramfs(guest_image, kernel))
    versions = {fetch.cached(name).version for name in (kernel, f"{kernel}-modules")}
    assert len(versions) == 1, "kernel and modules differ: guests/fetch.py --refresh"
    result = xenemu_run(
        path, "--mode", mode, "--memory", "256M", "--timeout", "60", "--explain",
        "--initrd", initrd, "--cmdline", "console=hvc0 quiet",
    )  # fmt: skip
    console, said = (stream.decode(errors="replace") for stream in (result.stdout, result.stderr))
    assert result.returncode == 4, said
    trace = console.partition("Call Trace:")[2]

    calls = said.rpartition("Backtrace:\n")[2].partition("\nPage walk")[0].splitlines()
    fired = next(n for n, line in enumerate(calls) if "softdog_fire" in line)
    assert calls[fired].strip() == re.search(r"softdog_fire\S* \[softdog\]", trace)[0]
    ours = [line.strip() for line in calls[fired + 1 : fired + 8]]
    assert not [line for line in ours if line.startswith("?")], calls
    theirs = TRACED.findall(trace.replace("\r", ""))
    assert ours == theirs[theirs.index(ours[0]) :][: len(ours)]

    task = re.search(r"CPU: 0 (?:UID: 0 )?PID: (\d+) Comm: (\S+)", console)
    assert f"\n  running {task[2]}, pid {task[1]}\n" in said
    assert f"\nModules:\n  {' '.join(reversed(MODULES))}\n" in said
    assert re.search(r"xen_wdt_probe\+0x\w+/0x\w+ \[xen_wdt\]", said)
