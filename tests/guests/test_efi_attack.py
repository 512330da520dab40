"""Hostile PE programs, which call EFI's services and protocols with whatever arguments.

They are code of the guest's on the engine, no fakes: each call is a stub's VMCALL. The programs do
not call what ends them or waits for ever, nor CopyMem and SetMem: with those they would soon spoil
their own code. Those are called in tests/entries/test_efi_hostile.py. What the programs pass is in
low memory, where no service that they do call can reach their code from.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from pewriter import I386, X86_64, pe

from xenemu.entries.efi import abi
from xenemu.entries.efi.abi import RETURNS

CALLS = {64: 38_000, 32: 12_000}
SPOILS = {"CopyMem", "SetMem", "Reserved", "Exit", "ExitBootServices", "ResetSystem"}
WAITS = {"WaitForEvent", "RaiseTPL", "RestoreTPL"}
NOT_CALLED = SPOILS | WAITS | set(RETURNS)
BOOT = [n for n, name in enumerate(abi.BOOT_STUBS) if name not in NOT_CALLED]
RUNTIME = [n for n, name in enumerate(abi.RUNTIME_SERVICES) if name not in NOT_CALLED]

PROGRAM = """
#ifdef __x86_64__
#define EFIAPI __attribute__((ms_abi))
#define SYSTEM_BOOT 96
#define SYSTEM_RUNTIME 88
#else
#define EFIAPI
#define SYSTEM_BOOT 60
#define SYSTEM_RUNTIME 56
#endif
#define HIGHEST (8 * sizeof(word) - 1)
typedef unsigned long word;
typedef EFIAPI word (*service)(word, word, word, word, word, word, word, word);
static unsigned long long state = 88172645463325252ULL;
static word *const scratch = (word *)(32UL << 20);

static word draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (word)state;
}

static word hostile(word image, word last)
{
    word chance = draw();

    switch (draw() % 10) {
    case 0: return chance % 16;
    case 1: return chance;
    case 2: return 1UL << (chance & HIGHEST);
    case 3: return -(chance % 4096);
    case 4: return (chance % 64 << 20) - chance % 16;
    case 5: return image + chance % 64;
    case 6: return image;
    case 7: return last;
    default: return (word)&scratch[chance % 4096];
    }
}

/* The stubs of all services are 16 bytes apart; the first one is in the table. */
EFIAPI __attribute__((section(".text.entry"))) word start(word image, word system)
{
    static const unsigned char boot[] = { BOOT }, runtime[] = { RUNTIME };
    word first_boot = *(word *)(*(word *)(system + SYSTEM_BOOT) + 24);
    word first_runtime = *(word *)(*(word *)(system + SYSTEM_RUNTIME) + 24);
    word services[sizeof(boot) + sizeof(runtime)], count = 0, last = 0, failed = 0;

    for (word n = 0; n < sizeof(boot); n++)
        services[count++] = first_boot + 16 * boot[n];
    for (word n = 0; n < sizeof(runtime); n++)
        services[count++] = first_runtime + 16 * runtime[n];
    for (word n = 0; n < CALLS; n++) {
        word a[8];
        for (int i = 0; i < 8; i++)
            a[i] = hostile(image, last);
        scratch[draw() % 4096] = hostile(image, last);
        last = ((service)services[draw() % count])(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
        failed += last >> HIGHEST;
    }
    __asm__ volatile("outb %%al, $0xe9" : : "a"('\\n'));
    for (word n = failed; n; n /= 10)
        __asm__ volatile("outb %%al, $0xe9" : : "a"('0' + n % 10));
    __asm__ volatile("outb %%al, $0xe9" : : "a"('\\n'));
    return 21 | 1UL << HIGHEST;
}
"""
LINKED = """
SECTIONS {
    . = 0x1000;
    _GLOBAL_OFFSET_TABLE_ = 0; /* what 32-bit code finds its data by */
    .text : { *(.text.entry) *(.text*) *(.rodata*) *(.data*) *(.bss*) }
    /DISCARD/ : { *(*) }
}
"""
FLAGS = (
    "-O1 -fpie -ffreestanding -nostdlib -static -mgeneral-regs-only -fno-stack-protector"
    " -fcf-protection=none -fno-asynchronous-unwind-tables -Wl,--build-id=none"
    " -Wl,--oformat=binary -Wl,-e,start"
).split()


def build(folder, bits: int) -> bytes:
    """Compile the program, of one width."""
    source, script, binary = folder / "attack.c", folder / "attack.lds", folder / "attack.bin"
    lists = {"BOOT": BOOT, "RUNTIME": RUNTIME, "CALLS": [CALLS[bits]]}
    flags = [*FLAGS, f"-m{bits}", *(f"-D{k}={','.join(map(str, v))}" for k, v in lists.items())]
    source.write_text(PROGRAM)
    script.write_text(LINKED)
    subprocess.run(["gcc", *flags, "-T", script, "-o", binary, source], check=True)
    return pe(binary.read_bytes(), X86_64 if bits == 64 else I386, size=1 << 20)


@pytest.mark.parametrize("bits", CALLS)
def test_hostile_calls_end_in_a_status(xenemu_run, tmp_path, bits):
    program, root = tmp_path / "attack.efi", tmp_path / "root"
    program.write_bytes(build(tmp_path, bits))
    root.mkdir()
    (root / "file").write_bytes(bytes(10_000))
    run = xenemu_run(program, "--entry", "efi", "--memory", "256M", "--efi-root", root)
    # It comes to its end, which is a status of its own; calls of all kinds were refused.
    stderr = run.stderr.decode()
    assert run.returncode == 5 and "the EFI program ended, with EFI_ABORTED" in stderr, stderr
    failed = re.search(rb"^(\d+)$", run.stdout.replace(b"\r", b""), re.MULTILINE)
    assert failed and CALLS[bits] // 2 < int(failed[1][::-1]) < CALLS[bits]
    assert "EFI has no OpenProtocolInformation" in stderr
