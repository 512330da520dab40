"""From a panic of Debian's kernel back to before its input, and forward to the same panic again."""

from __future__ import annotations

import re
import subprocess

from gdbtools import run_gdb, waiting
from guests import initramfs

# It reads a line, and then crashes the kernel by SysRq.
INIT = b"""#!/bin/sh
mount -t proc proc /proc
echo READY
read line
echo GOT $line
echo 1 > /proc/sys/kernel/sysrq
echo c > /proc/sysrq-trigger
"""
PANIC = b"Kernel panic - not syncing: sysrq triggered crash"


def test_from_a_panic_back_to_before_the_input_and_to_the_same_panic(guest_image, tmp_path):
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(initramfs.build(guest_image("busybox").read_bytes(), INIT))
    options = ("--mode", "pvh", "--initrd", initrd, "--cmdline", "console=hvc0", "--vcpus", "4")
    kernel = guest_image("debian-cloud-amd64")
    with waiting(kernel, *options, stdin=subprocess.PIPE) as guest:
        guest.process.stdin.write(b"typed once\n")
        guest.process.stdin.close()
        guest.process.stdin = None
        lines = run_gdb(
            f"target remote {guest.address}", "continue", "monitor when", "monitor checkpoint",
            "break sysrq_handle_crash", "reverse-continue", "bt 3", "reverse-stepi", "stepi",
            *("delete", "watch *(int *)&sysrq_enabled", "reverse-continue"),
            *("delete", "monitor goto 0.2s", "continue", "monitor when", "continue"),
            *("monitor when", "bt 3", "monitor checkpoints", "kill"),
        )  # fmt: skip
        out, _ = guest.finish()
    text = "\n".join(lines)
    assert out.count(b"GOT typed once") == out.count(PANIC) == 1, out
    assert text.count("received signal SIGABRT") == 2, text
    whens = [line for line in lines if line.startswith("after ")]
    assert len(whens) == 3 and whens[0] == whens[2]
    assert whens[1].endswith("at 0.200000000 s")
    assert re.search(r"Breakpoint 1, .*sysrq_handle_crash \(\)", text)
    assert "in sysrq_handle_crash ()" in text and "in __handle_sysrq" in text
    assert text.count("hit Breakpoint 1") == 2  # back, and again after a step back and on
    assert re.search(r"Old value = 1\nNew value = \d+\n.*in sysrq_toggle_support", text), text
