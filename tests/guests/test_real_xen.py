"""The PV guests on a real Xen 4.17: Debian's xen-shim, itself a PVH guest of ours.

What a guest finds right on xenemu it must find right on Xen, so that its expectations are Xen's
and not our own. The shim builds the domain by itself: only the verdict is compared.

The shim keeps no grant tables. Debian's whole Xen does, and is no PVH guest: it runs in QEMU, where
there is one, with the guest as its dom0.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess

import pytest

from guests.build import ENVIRONMENTS, build, guests

GUESTS = guests()
RACE = "race"  # whose outcome is another in another order of vcpus
RUNS = [
    (name, environment)
    for name, guest in GUESTS.items()
    for environment in guest.environments
    if ENVIRONMENTS[environment].mode == "pv" and name != RACE
]

SHIM_LACKS = {"grant-tables": "Test result: SKIP"}
SHIM = ("--mode", "pvh", "--memory", "256M", "--timeout", "120", "--cmdline", "pv-shim console=pv")


@pytest.mark.parametrize(("name", "environment"), RUNS)
def test_a_real_xen_agrees(name, environment, tmp_path, guest_image, xenemu_run):
    guest = GUESTS[name]
    kernel = build(guest, ENVIRONMENTS[environment], tmp_path / name)
    vcpus = ("--vcpus", str(guest.vcpus))
    options = (*vcpus, *guest.options)
    result = xenemu_run(guest_image("xen-shim"), *SHIM, *options, "--initrd", kernel)
    console = result.stdout.decode(errors="replace")
    verdict = SHIM_LACKS.get(name, guest.expected(environment).splitlines()[-1])
    assert "Xen version 4.17" in console, result.stderr.decode()
    assert verdict in console.splitlines(), console + result.stderr.decode()
    crashes = bool(guest.exit)  # the shim crashes with its domain
    assert bool(result.returncode) is crashes, console + result.stderr.decode()


FEATURES = b"!writable_page_tables|pae_pgdir_above_4gb\0"


@pytest.mark.parametrize("environment", ["pv64", "pv32"])
def test_a_real_xen_refuses_a_kernel_that_requires_ring_0(
    environment, tmp_path, guest_image, xenemu_run
):
    """Xen's own builder does, which dom0 and the shim's guest have; so do we, for all."""
    kernel = build(GUESTS["hello"], ENVIRONMENTS[environment], tmp_path / "hello")
    data = kernel.read_bytes()
    assert data.count(FEATURES) == 1
    required = b"!supervisor_mode_kernel".ljust(len(FEATURES), b"\0")
    kernel.write_bytes(data.replace(FEATURES, required))
    real = xenemu_run(guest_image("xen-shim"), *SHIM, "--initrd", kernel)
    assert b"requires supervisor-mode execution" in real.stdout, real.stderr.decode()
    assert b"hello" not in real.stdout and real.returncode
    ours = xenemu_run(kernel, "--entry", "pv")
    assert (ours.returncode, ours.stdout, ours.stderr.count(b"\n")) == (7, b"", 1)
    assert b"FEATURES requires supervisor_mode_kernel, which a PV domain does not" in ours.stderr


@pytest.mark.parametrize("name", ["gnumach-xen-486", "gnumach-xen-486-i386"])
def test_mach_shuts_itself_down_on_a_real_xen_too(name, guest_image, xenemu_run):
    """With the reason it happens to have in a register: that of its store to a page table."""
    ours = xenemu_run(guest_image(name), "--mode", "pv", "--timeout", "60")
    real = xenemu_run(guest_image("xen-shim"), *SHIM, "--initrd", guest_image(name))
    last = [result.stderr.decode().splitlines()[-1] for result in (ours, real)]
    reasons = [line.partition("shutdown reason ")[2].partition(";")[0] for line in last]
    assert reasons[0], ours.stderr.decode()
    assert reasons[0] == reasons[1], real.stderr.decode()


QEMU = "qemu-system-x86_64"
MACHINE = "-accel tcg -cpu qemu64 -m 512M -nodefaults -display none -serial stdio -no-reboot"
XEN_CMDLINE = "console=com1 com1=115200,8n1 dom0_mem=64M guest_loglvl=all"


@pytest.mark.skipif(not shutil.which(QEMU), reason=f"no {QEMU}: apt-get install qemu-system-x86")
def test_the_grant_tables_of_a_whole_xen_agree(tmp_path, guest_image):
    (tmp_path / "xen").write_bytes(gzip.decompress(guest_image("xen-hypervisor").read_bytes()))
    build(GUESTS["grant-tables"], ENVIRONMENTS["pv64"], tmp_path / "guest")
    options = ("-kernel", "xen", "-initrd", "guest", "-append", XEN_CMDLINE)
    console = []
    with subprocess.Popen(
        ("timeout", "300", QEMU, *MACHINE.split(), *options),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as qemu:
        try:
            assert qemu.stdout
            for line in qemu.stdout:  # Xen reboots if it dies, which ends this QEMU
                console.append(line)
                if line.startswith("Test result: "):
                    break
        finally:
            qemu.terminate()
    assert console[-1].rstrip() == "Test result: SUCCESS", "".join(console)
