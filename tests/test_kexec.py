"""A Linux under PVH that panics starts the crash kernel, which finds the memory of the first one.

Also what is done with a guest that asks for a soft reset and cannot, or shall not, have it.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from test_core_boots import noted
from test_ends import run

import tinyguest
from guests.build import ENVIRONMENTS, guests
from guests.build import build as build_guest
from unattended import Unattended
from xenemu.image import load
from xenemu.machine import DomainConfig, Machine
from xenemu.machine.ends import Action, Life
from xenemu.outcome import End, Outcome
from xenemu.smoke.initramfs import Member, build, entries, pack

SOFT_RESET = 5
# kexec_file_load of /vmlinuz with /second.gz, for a panic.
KEXEC = r"""
static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 asm("r10") = d;
    register long r8 asm("r8") = e;

    asm volatile("syscall" : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                 : "rcx", "r11", "memory");
    return result;
}

int main_(long *stack)
{
    char *cmdline = (char *)stack[2];
    long size = 1;

    while (cmdline[size - 1])
        size++;
    long kernel = call(2, (long)"/vmlinuz", 0, 0, 0, 0);
    long initrd = call(2, (long)"/second.gz", 0, 0, 0, 0);
    return -call(320, kernel, initrd, size, (long)cmdline, 2);
}

asm(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call main_\n"
    " mov %eax, %edi\n mov $60, %eax\n syscall");
"""
FIRST = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
rsdp=$(dmesg | grep -o 'RSDP 0x[0-9A-F]*' | cut -c6-)
/kexec "console=hvc0 quiet nokaslr acpi_rsdp=$rsdp"
echo "loaded: $? $(cat /sys/kernel/kexec_crash_loaded)"
echo c > /proc/sysrq-trigger
"""
SECOND = """#!/bin/sh
mount -t proc proc /proc
echo "the second kernel"
head -c 4 /proc/vmcore
head -c 32768 /proc/vmcore | grep -a -o -E 'OSRELEASE=[-.a-z0-9]+|CRASHTIME=[0-9]+'
poweroff -f
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_panic_boots_the_crash_kernel_which_reads_the_first_ones_memory(
    tmp_path, guest_image, xenemu_run
):
    flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -x c - -o"
    kexec = tmp_path / "kexec"
    subprocess.run(["gcc", *flags.split(), kexec], input=KEXEC.encode(), check=True)
    kernel, busybox = guest_image("debian-cloud-amd64"), guest_image("busybox").read_bytes()
    second = build(busybox, SECOND.encode())
    files = {"kexec": kexec.read_bytes(), "vmlinuz": kernel.read_bytes(), "second.gz": second}
    members = [Member(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    (tmp_path / "initrd.gz").write_bytes(pack([*entries(FIRST.encode(), busybox), *members]))
    words = ["--mode", "pvh", "--memory", "384M", "--initrd", tmp_path / "initrd.gz"]
    words += ["--cmdline", "console=hvc0 quiet crashkernel=128M", "--timeout", "300"]
    words += ["--core", tmp_path / "core"]
    result = xenemu_run(kernel, *words)
    console, told = result.stdout.decode(), result.stderr.decode()
    assert "loaded: 0 1" in console
    # The note is where the first kernel has left it, when it panicked.
    found = re.search(r"the second kernel\s+\x7fELFOSRELEASE=(\S+)\s+CRASHTIME=\d+", console)
    assert found and found[1] in kernel.name, console
    assert "asked for a soft reset: the domain is renewed, and its memory stays" in told
    # The core is of the kernel that panicked, not of the other one, which halted.
    assert "CRASHTIME" in noted(tmp_path / "core")
    assert result.returncode == 4  # whatever came after it, it panicked
    assert told.splitlines()[-1].startswith("xenemu: guest-crash, exit 4: Kernel panic")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "kernel").write_bytes(tinyguest.kernel(tinyguest.shutdown(SOFT_RESET)))
    return Machine(load(tmp_path / "kernel"), DomainConfig(32 << 20))


def test_xen_refuses_it_to_pv_domains(machine: Machine) -> None:
    outcome = machine.run(Unattended())
    assert outcome.end is End.REFUSED
    assert outcome.reason == "the guest asked for a soft reset, which Xen refuses to PV domains"


def test_who_listens_hears_of_each(tmp_path: Path) -> None:
    kernel = build_guest(guests()["soft-reset"], ENVIRONMENTS["pvh64"], tmp_path / "guest")
    machine = Machine(load(kernel), DomainConfig(64 << 20))
    outcome, _, told, heard = run(machine, Life(), {"do": "events"})
    assert outcome.end is End.POWEROFF and len(told) == 3
    assert [event["event"] for event in heard[1:]] == ["shutdown", "soft-reset"] * 3 + ["shutdown"]


def test_what_else_is_done_is_a_rule_like_others() -> None:
    rules = {"soft_reset": Action.DESTROY}
    assert Life(rules).after(Outcome(End.SOFT_RESET, "")) is Action.DESTROY
    assert Life().after(Outcome(End.SOFT_RESET, "")) is Action.SOFT_RESET
