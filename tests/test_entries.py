"""Debian's kernels by Linux's own entries and by EFI, to userland and power-off, twice the same.

A bzImage unpacks itself in the guest, with KASLR; a vmlinux is the ELF in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guests.initramfs import DEFAULT_INIT
from xenemu import cli, image
from xenemu.smoke.initramfs import build

MEMORY = "256M"
BOOTS = [
    ("debian-amd64", "linux32", "bzImage"),
    ("debian-amd64", "linux64", "bzImage"),
    ("debian-amd64", "linux64", "vmlinux"),
    ("debian-cloud-amd64", "linux32", "bzImage"),
    ("debian-cloud-amd64", "linux64", "bzImage"),
    ("debian-cloud-amd64", "linux64", "vmlinux"),
    ("debian-6.12-cloud-amd64", "linux32", "bzImage"),
    ("debian-6.12-cloud-amd64", "linux64", "bzImage"),
    ("debian-6.12-cloud-amd64", "linux64", "vmlinux"),
    ("debian-amd64", "efi", "bzImage"),
    ("debian-cloud-amd64", "efi", "bzImage"),
    ("debian-6.12-cloud-amd64", "efi", "bzImage"),
    ("debian-cloud-amd64", "efi-handover", "bzImage"),
    ("debian-cloud-amd64", "efi32", "bzImage"),
    ("debian-cloud-amd64", "efi-handover32", "bzImage"),
    ("debian-686-pae", "efi", "bzImage"),
    ("debian-686-pae", "linux32", "bzImage"),
    ("debian-686-pae", "linux32", "vmlinux"),
]
ONCE = {("debian-cloud-amd64", "efi32", "bzImage")}  # by efi-handover32, too, which is twice
TWICE = {boot for boot in BOOTS if boot[0] == "debian-cloud-amd64"} - ONCE
MILESTONES = (
    *(r"Linux version 6\.1", "Hypervisor detected: Xen HVM"),
    *("INIT-OK", "xen", "command line: console=hvc0", "INIT-DONE"),
)


@pytest.fixture(scope="module")
def kernel(guest_image, tmp_path_factory):
    """A function that gives the path of a kernel, as a bzImage or as its vmlinux."""

    def find(name, form):
        path = guest_image(name)
        if form != "vmlinux":
            return path
        vmlinux = tmp_path_factory.mktemp("vmlinux") / name
        vmlinux.write_bytes(image.load(path).elf)
        return vmlinux

    return find


@pytest.fixture(scope="module")
def initrd(guest_image, tmp_path_factory):
    """A function that gives the path of an initramfs with Debian's busybox for a kernel."""

    def make(name):
        busybox = guest_image("busybox-i386" if name == "debian-686-pae" else "busybox")
        path = tmp_path_factory.mktemp("initrd") / "initrd.gz"
        path.write_bytes(build(busybox.read_bytes(), DEFAULT_INIT.read_bytes()))
        return path

    return make


@pytest.mark.parametrize("name, entry, form", BOOTS)
def test_debian_boots_to_userland_and_powers_off(kernel, initrd, xenemu_run, name, entry, form):
    options = ("--entry", entry, "--memory", MEMORY, "--timeout", "300")
    options += ("--initrd", initrd(name), "--cmdline", "console=hvc0")
    first = xenemu_run(kernel(name, form), *options)
    console = first.stdout.decode(errors="replace")
    assert first.returncode == 0, first.stderr.decode()
    at = 0
    for milestone in MILESTONES:
        found = re.compile(milestone).search(console, at)
        assert found, f"no {milestone!r} after byte {at} of:\n{console}"
        at = found.end()
    if (name, entry, form) in TWICE:
        second = xenemu_run(kernel(name, form), *options, "--audit", "0.1")
        counts = [re.search(rb"(\d+) instructions", run.stderr) for run in (first, second)]
        assert second.stdout == first.stdout
        assert counts[0] and counts[1] and counts[0][1] == counts[1][1]


def test_kaslr_goes_by_the_seed(guest_image, xenemu_run):
    """A kernel that finds no root file system says in its panic where it lies."""

    def offset(*options):
        run = xenemu_run(
            guest_image("debian-cloud-amd64"), "--entry", "linux64", "--timeout", "300", *options
        )
        found = re.search(rb"Kernel Offset: (\w+)", run.stdout)
        report = run.stderr.decode()
        assert run.returncode == 4 and found, report
        assert re.search(r"^  \[.*\] Kernel panic - not syncing: VFS", report, re.MULTILINE)
        assert re.search(r"^     panic\+0x", report, re.MULTILINE)  # named wherever it lies
        return found[1].decode()

    console = ("--cmdline", "console=hvc0 panic=-1")
    zero, one = (offset("--rng-seed", seed, *console) for seed in ("0", "1"))
    assert zero.startswith("0x") and one.startswith("0x") and zero != one
    assert offset("--cmdline", "console=hvc0 panic=-1 nokaslr") == "disabled"


def test_a_linux_calls_efi_where_it_has_mapped_it(guest_image, xenemu_run, tmp_path):
    init = tmp_path / "reboot.sh"
    init.write_text("#!/bin/sh\nreboot -f\n")
    run = xenemu_run(
        *(guest_image("debian-cloud-amd64"), "--entry", "efi", "--timeout", "300"),
        *("--init", init, "--busybox", guest_image("busybox"), "--trace", "hypercalls"),
        *("--cmdline", "console=hvc0"),
    )
    trace = run.stderr.decode()
    assert run.returncode == 0 and "the guest asked to be rebooted" in trace
    calls = re.findall(r"EFI\.(\w+)", trace)
    after = calls[calls.index("ExitBootServices") + 1 :]
    assert after[0] == "SetVirtualAddressMap" and "GetVariable" in after[1:]
    assert "EFI_UNSUPPORTED" not in trace


# Userland's own view of boot_params: the loader's id, hardware_subarch, and what setup_data is.
LOOK = """#!/bin/sh
mount -t sysfs sys /sys
cd /sys/kernel/boot_params
echo "loader $(hexdump -v -s 528 -n 1 -e '1/1 "%02x"' data)"
echo "subarch $(hexdump -v -s 572 -n 4 -e '1/4 "%d"' data)"
echo "pointer $(hexdump -v -s 576 -n 8 -e '1/4 "%x"' data)"
echo "setup_data $(cat setup_data/0/type)"
"""


def test_userland_sees_what_boot_params_said(guest_image, xenemu_run, tmp_path):
    init = tmp_path / "look.sh"
    init.write_text(LOOK)
    run = xenemu_run(
        *(guest_image("debian-cloud-amd64"), "--entry", "linux32", "--subarch", "xen"),
        *("--init", init, "--busybox", guest_image("busybox"), "--timeout", "300"),
        *("--cmdline", "console=hvc0"),
    )
    console = run.stdout.decode().replace("\r", "")
    for line in ("loader 90", "subarch 2", "setup_data 0x9"):
        assert f"\n{line}\n" in console, console
    assert re.search(r"\npointer 9[0-9a-f]{4}0\n", console), console


HERE = str(Path(__file__).parent / "entries")
REFUSED = [
    ("debian-cloud-amd64", "vmlinux", "efi", (), "this is an ELF, and has no PE header"),
    ("debian-686-pae", "bzImage", "efi32", (), "the PE program has 32 bits itself: by efi, it g"),
    ("debian-686-pae", "bzImage", "efi-handover", (), "the bzImage has no 64-bit handover entry"),
    ("xen-shim", "bzImage", "efi-handover32", (), "this is an ELF; Linux's bzImage has a"),
    ("grub-x86_64-xen", "bzImage", "efi", (), "this is an ELF, and has no PE header"),
    ("debian-cloud-amd64", "vmlinux", "linux32", (), "an x86-64 vmlinux has no 32-bit entry"),
    ("debian-686-pae", "bzImage", "linux64", (), "the bzImage has no 64-bit entry"),
    ("debian-686-pae", "vmlinux", "linux64", (), "an i386 vmlinux has no 64-bit entry"),
    ("grub-x86_64-xen", "bzImage", "linux64", (), "this is not Linux"),
    ("debian-cloud-amd64", "bzImage", "pvh", ("--subarch", "xen"), "--subarch: pvh has no boot_p"),
    ("debian-cloud-amd64", "bzImage", "pvh", ("--efi-root", HERE), "--efi-root: pvh has no EFI"),
    ("debian-cloud-amd64", "bzImage", "efi", ("--efi-root", "/gone"), "--efi-root /gone: No such"),
    ("systemd-boot", "file", "auto", (), "this is a PE program, which EFI starts"),
    ("systemd-boot", "file", "efi32", (), "the PE program has no entry for 32-bit EFI"),
    ("debian-cloud-amd64", "bzImage", "linux64", ("--subarch", "x"), "--subarch x: give pc, lgue"),
    ("debian-cloud-amd64", "bzImage", "linux64", ("--cmdline", "x" * 2048), "takes at most 2047"),
]


def test_what_cannot_be_is_one_line(kernel, capsys):
    for name, form, entry, more, sentence in REFUSED:
        arguments = ["run", str(kernel(name, form)), "--entry", entry, *more]
        assert cli.main(arguments) == 7, arguments
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and sentence in err, err
