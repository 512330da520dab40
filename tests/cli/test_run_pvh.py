"""`xenemu run` of PVH kernels of a few instructions: what cannot start, and what ends at once."""

from __future__ import annotations

import re

import pytest

import elfwriter
from elfwriter import PT_NOTE, Phdr, elf, note

START = 0x10_0000
HLT, UNDEFINED = b"\xf4", b"\x0f\x0b"
JUMP = bytes.fromhex("b8000000c0 ffe0")  # mov $0xc0000000,%eax; jmp *%eax
RESET = bytes.fromhex("0f011d00101000 cc")  # lidt 0x101000, where there are zeros; int3
# Tells on Xen's debug console each module's first byte and its command line.
TELL_MODULES = bytes.fromhex(
    "8b4b0c"  # mov nr_modules(%ebx),%ecx
    "8b5b10"  # mov modlist_paddr(%ebx),%ebx
    "8b33"  # 1: mov paddr(%ebx),%esi
    "ac e6e9"  # lodsb; out %al,$0xe9: the module's first byte
    "8b7310"  # mov cmdline_paddr(%ebx),%esi
    "85f6 7409"  # test %esi,%esi; jz 3f
    "ac 84c0 7404 e6e9 ebf7"  # 2: lodsb; test %al,%al; jz 3f; out %al,$0xe9; jmp 2b
    "83c320"  # 3: add $32,%ebx
    "e2e6"  # loop 1b
    "f4"
)


@pytest.fixture
def boot(tmp_path, xenemu_run):
    """A function that runs `code` as a PVH kernel at 1 MiB."""
    path = tmp_path / "kernel"

    def boot(code, *options, memory="8M"):
        notes = Phdr(note(18, START, width=4), PT_NOTE, paddr=0, vaddr=0)
        kernel = Phdr(code, paddr=START, vaddr=START, memsz=0x2000)
        path.write_bytes(elf((kernel, notes), bits=32, entry=START))
        return xenemu_run(path, "--memory", memory, *options)

    return boot


def one_line(result) -> str:
    line = result.stderr.decode()
    assert line.startswith("xenemu: ") and line.count("\n") == 1
    assert result.stdout == b""
    return line


def test_an_image_without_the_note(tmp_path, xenemu_run):
    path = tmp_path / "kernel"
    path.write_bytes(elfwriter.kernel())
    result = xenemu_run(path, "--mode", "pvh")
    assert result.returncode == 7
    assert "cannot boot as pvh: there is no PHYS32_ENTRY note" in one_line(result)


def test_a_module_that_does_not_fit(boot, tmp_path):
    module = tmp_path / "module"
    module.write_bytes(bytes(7 << 20))
    result = boot(HLT, "--module", module)
    assert result.returncode == 8
    assert "module 0 would lie at 0x102000-0x802000" in one_line(result)


def test_a_kernel_that_does_not_fit(boot):
    result = boot(HLT, memory="1M")
    assert result.returncode == 8
    assert "the kernel would lie at 0x100000-0x102000" in one_line(result)


def test_a_module_that_is_not_there(boot):
    result = boot(HLT, "--module", "/nonexistent=x")
    assert result.returncode == 7
    assert "--module /nonexistent: No such file or directory" in one_line(result)


def test_an_exception_without_an_idt_is_a_triple_fault(boot):
    result = boot(UNDEFINED)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 5
    assert lines[0] == ("xenemu: triple fault at 0x100000; its IDT is at 0x0, with the limit 0x0")
    assert "  rip 0x100000, in kernel mode" in lines
    assert lines[-1].startswith("xenemu: triple-fault, exit 5: ")


def test_a_report_ends_though_the_stack_pointer_is_not_aligned(boot):
    load = bytes.fromhex("bc01002000")  # mov $0x200001, %esp
    assert b"Backtrace:" in boot(load + UNDEFINED).stderr


def test_a_jump_into_nothing_shows_where_it_went(boot):
    result = boot(JUMP)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 5
    assert lines[0].startswith("xenemu: triple fault at 0xc0000000; ")
    assert any(re.fullmatch("  came from 0x10000[0-9a-f]", line) for line in lines)
    walk = lines.index("Page walk of rip, which cannot be read:")
    assert lines[walk + 1 : walk + 3] == [
        "  0xc0000000: paging is off",
        "    -> 0xc0000000, where no memory is",
    ]


def test_hlt_with_interrupts_off_is_a_power_off_that_says_so(boot):
    result = boot(HLT)
    assert (result.returncode, result.stdout) == (0, b"")
    words = b"xenemu: poweroff, exit 0: the guest powered off: its last vcpu halted "
    assert result.stderr.startswith(words)


def test_a_reset_by_an_empty_idt_is_a_reboot(boot):
    result = boot(RESET)
    assert (result.returncode, result.stdout) == (0, b"")
    words = b"xenemu: reboot, exit 0: the guest reset itself by a triple fault; virtual"
    assert result.stderr.startswith(words)


def test_modules_have_their_command_lines(boot, tmp_path):
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
    a, b, c = files
    options = ("--initrd", a, "--module", f"{b}=one=1", "--module", c)
    result = boot(TELL_MODULES, *options)
    assert (result.returncode, result.stdout) == (0, b"abone=1c")
