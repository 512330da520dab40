"""64-bit PV guests of a few instructions."""

from __future__ import annotations

import elfwriter

# mov $29, %eax; mov $SCHEDOP_shutdown, %edi; push $REASON; mov %rsp, %rsi; syscall
SHUTDOWN = bytes.fromhex("b81d000000 bf02000000 6a00 4889e6 0f05")
POWEROFF, REBOOT, CRASH = 0, 1, 3
SPIN = b"\xeb\xfe"
UNDEFINED = b"\x0f\x0b"
# mov $29, %eax; mov $SCHEDOP_block, %edi; syscall
BLOCK = bytes.fromhex("b81d000000 bf01000000 0f05")


def shutdown(reason: int) -> bytes:
    return SHUTDOWN.replace(b"\x6a\x00", bytes([0x6A, reason]))


def say(text: bytes) -> bytes:
    """console_io(CONSOLEIO_write, count, text), with the text after a jump."""
    code = b"\xb8\x12\0\0\0\x31\xff\xbe" + len(text).to_bytes(4, "little")
    return code + b"\x48\x8d\x15\x04\0\0\0\x0f\x05\xeb" + bytes([len(text)]) + text


def wait_until(ns: int) -> bytes:
    """SCHEDOP_poll of no port, until the guest's clock shows `ns`."""
    poll = bytes.fromhex("50 6a00 6a00 4889e6 b81d000000 bf03000000 0f05")
    return b"\x48\xb8" + ns.to_bytes(8, "little") + poll


def kernel(code: bytes, symbols: dict[str, int] | None = None) -> bytes:
    """An ELF that runs `code` in kernel mode, with no trap handlers; the addresses of `symbols`."""
    notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
    sections = elfwriter.symbol_table(symbols) if symbols else ()
    return elfwriter.elf([elfwriter.Phdr(code, memsz=0x2000), notes], sections)
