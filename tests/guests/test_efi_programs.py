"""Debian's boot loaders for EFI: to their prompts, and with a kernel to its userland."""

from __future__ import annotations

import re
import shutil

import pytest

from guests.initramfs import DEFAULT_INIT
from xenemu.smoke.initramfs import build

LOADER = "default debian\ntimeout 2\n"
ENTRY = "title Debian\nlinux /linux/vmlinuz\ninitrd /linux/initrd.gz\noptions console=hvc0\n"
GRUB = "echo found by its prefix\n"  # no menu, so there comes a prompt
MENU = """
set timeout=0
menuentry Debian {
    linux ($root)/linux/vmlinuz console=hvc0
    initrd ($root)/linux/initrd.gz
}
"""
TYPED = b"lsefi\nls -l ($root)/\nconfigfile /linux/a_menu_by_its_long_name.cfg\n"
USERLAND = ("Linux version 6\\.1", "INIT-OK", "command line: .*console=hvc0", "INIT-DONE")


@pytest.fixture(scope="module")
def root(guest_image, tmp_path_factory):
    """A directory for --efi-root, as both loaders want it."""
    at = tmp_path_factory.mktemp("efi-root")
    for path in ("linux", "loader/entries", "EFI/debian"):
        (at / path).mkdir(parents=True)
    shutil.copy(guest_image("debian-cloud-amd64"), at / "linux/vmlinuz")
    busybox = guest_image("busybox").read_bytes()
    (at / "linux/initrd.gz").write_bytes(build(busybox, DEFAULT_INIT.read_bytes()))
    (at / "loader/loader.conf").write_text(LOADER)
    (at / "loader/entries/debian.conf").write_text(ENTRY)
    (at / "EFI/debian/grub.cfg").write_text(GRUB)
    (at / "linux/a_menu_by_its_long_name.cfg").write_text(MENU)
    return at


def shown(console: bytes) -> str:
    """What a console shows, without a terminal's commands."""
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", console)
    return text.decode(errors="replace").replace("\r", "")


def check_order(text: str, milestones) -> None:
    at = 0
    for milestone in milestones:
        found = re.compile(milestone).search(text, at)
        assert found, f"no {milestone!r} after {at} of:\n{text}"
        at = found.end()


@pytest.mark.parametrize(
    ("loader", "typed", "menu"),
    [
        ("systemd-boot", b"", ("Debian", r"Boot in 2 s\.", "Loaded initrd from LINUX_EFI_INITRD")),
        (
            "grub-x86_64-efi",
            TYPED,
            ("found by its prefix", "grub> ", "simple FS", "DIR .*linux/", "Booting `Debian'"),
        ),
    ],
    ids=["systemd-boot", "grub"],
)
def test_a_loader_starts_debian(guest_image, xenemu_run, root, loader, typed, menu):
    options = ("--entry", "efi", "--efi-root", root, "--timeout", "300")
    runs = [
        xenemu_run(guest_image(loader), *options, *audit, stdin=typed)
        for audit in ((), ("--audit", "0.5"))
    ]
    assert runs[0].returncode == 0, runs[0].stderr.decode()
    check_order(shown(runs[0].stdout), (*menu, *USERLAND))
    assert "EFI has no" not in runs[0].stderr.decode()
    counts = [re.search(rb"(\d+) instructions", run.stderr) for run in runs]
    assert runs[0].stdout == runs[1].stdout
    assert counts[0] and counts[1] and counts[0][1] == counts[1][1]


def test_a_loader_of_32_bits_starts_debian_in_mixed_mode(guest_image, xenemu_run, root):
    options = ("--entry", "efi", "--efi-root", root, "--timeout", "300")
    run = xenemu_run(guest_image("systemd-boot-ia32"), *options)
    assert run.returncode == 0, run.stderr.decode()
    check_order(shown(run.stdout), (r"Boot in 2 s\.", *USERLAND))


def test_systemd_boot_without_a_kernel_says_so(guest_image, xenemu_run, tmp_path):
    options = ("--entry", "efi", "--efi-root", tmp_path, "--timeout", "60")
    run = xenemu_run(guest_image("systemd-boot"), *options)
    assert run.returncode == 5 and "No loader found." in shown(run.stdout)
    assert "the EFI program ended, with EFI_" in run.stderr.decode()
