"""A hostile PE program, which calls EFI's services with whatever arguments.

It is code of the guest's on the engine, not a fake: each call is a stub's VMCALL. The program does
not call what ends it or waits for ever, nor CopyMem and SetMem: with them it would soon spoil its
own code. Those are called in tests/boot/test_efi_hostile.py.
"""

from __future__ import annotations

import re
import subprocess

from pewriter import efi_bzimage, pe

from xenemu.boot.efi import abi

CALLS = 50_000
SPOILS = {"CopyMem", "SetMem", "Reserved", "Exit", "ExitBootServices", "ResetSystem"}
WAITS = {"WaitForEvent", "RaiseTPL", "RestoreTPL"}
OFFSETS = [24 + 8 * n for n, name in enumerate(abi.BOOT_SERVICES) if name not in SPOILS | WAITS]
RUNTIME = [24 + 8 * n for n, name in enumerate(abi.RUNTIME_SERVICES) if name not in SPOILS]

PROGRAM = """
typedef unsigned long u64;
typedef __attribute__((ms_abi)) u64 (*service)(u64, u64, u64, u64, u64, u64, u64, u64);
static u64 state = 88172645463325252;
static u64 scratch[4096];

static u64 draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static u64 hostile(u64 image, u64 last)
{
    u64 chance = draw();

    switch (draw() % 10) {
    case 0: return chance % 16;
    case 1: return chance;
    case 2: return 1UL << chance % 64;
    case 3: return -(chance % 4096);
    case 4: return (chance % 64 << 20) - chance % 16;
    case 5: return image + chance % 64;
    case 6: return image;
    case 7: return last;
    default: return (u64)&scratch[chance % 4096];
    }
}

__attribute__((ms_abi, section(".text.entry"))) u64 start(u64 image, u64 system)
{
    static const unsigned short boot[] = { BOOT }, runtime[] = { RUNTIME };
    u64 services[sizeof(boot) / 2 + sizeof(runtime) / 2], count = 0, last = 0, failed = 0;

    for (u64 n = 0; n < sizeof(boot) / 2; n++)
        services[count++] = *(u64 *)(*(u64 *)(system + 96) + boot[n]);
    for (u64 n = 0; n < sizeof(runtime) / 2; n++)
        services[count++] = *(u64 *)(*(u64 *)(system + 88) + runtime[n]);
    for (u64 n = 0; n < CALLS; n++) {
        u64 a[8];
        for (int i = 0; i < 8; i++)
            a[i] = hostile(image, last);
        scratch[draw() % 4096] = hostile(image, last);
        last = ((service)services[draw() % count])(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        failed += last >> 63;
    }
    for (u64 n = failed; n; n /= 10)
        __asm__ volatile("outb %%al, $0xe9" : : "a"('0' + n % 10));
    __asm__ volatile("outb %%al, $0xe9" : : "a"('\\n'));
    return 21 | 1UL << 63;
}
"""
LINKED = """
SECTIONS {
    . = 0x1000;
    .text : { *(.text.entry) *(.text*) *(.rodata*) *(.data*) *(.bss*) }
    /DISCARD/ : { *(*) }
}
"""
FLAGS = (
    "-O1 -fpie -ffreestanding -nostdlib -static -mgeneral-regs-only -fno-stack-protector"
    " -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--build-id=none"
    " -Wl,--oformat=binary -Wl,-e,start"
).split()


def build(folder, calls: int) -> bytes:
    """Compile the program, into a bzImage."""
    source, script, binary = folder / "attack.c", folder / "attack.lds", folder / "attack.bin"
    lists = {"BOOT": OFFSETS, "RUNTIME": RUNTIME, "CALLS": [calls]}
    defines = [f"-D{name}={','.join(map(str, values))}" for name, values in lists.items()]
    source.write_text(PROGRAM)
    script.write_text(LINKED)
    subprocess.run(["gcc", *FLAGS, *defines, "-T", script, "-o", binary, source], check=True)
    return efi_bzimage(pe(binary.read_bytes(), size=1 << 20))


def test_hostile_calls_end_in_a_status(xenemu_run, tmp_path):
    kernel = tmp_path / "attack"
    kernel.write_bytes(build(tmp_path, CALLS))
    run = xenemu_run(kernel, "--entry", "efi", "--memory", "256M")
    # It comes to its end, which is a status of its own; calls of all kinds were refused.
    stderr = run.stderr.decode()
    assert run.returncode == 5 and "the EFI program ended, with EFI_ABORTED" in stderr, stderr
    failed = re.search(rb"^(\d+)$", run.stdout.replace(b"\r", b""), re.MULTILINE)
    assert failed and CALLS // 2 < int(failed[1][::-1]) < CALLS
    assert "EFI has no OpenProtocolInformation" in stderr
