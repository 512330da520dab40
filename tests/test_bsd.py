"""What a BSD kernel's memory says, written by hand into a guest that is memory only."""

from __future__ import annotations

import pytest

import elfwriter
from xenemu import image
from xenemu.abi.errno import EFAULT
from xenemu.bsd import MAX_MESSAGE, Bsd
from xenemu.errors import XenError

PANICSTR, WORDS = elfwriter.ENTRY + 0x100, elfwriter.ENTRY + 0x200


@pytest.fixture(params=[64, 32])
def bsd(request, tmp_path):
    """A function that makes a Bsd of the pointer `panicstr` and the memory that it leads to."""
    bits = request.param
    mask = (1 << bits) - 1

    def make(pointer, words=b"", names=("panicstr",)):
        parts = {PANICSTR & mask: (pointer & mask).to_bytes(bits // 8, "little")}
        parts[WORDS & mask] = words

        def read(vaddr, size):
            for start, part in parts.items():
                if start <= vaddr and vaddr + size <= start + len(part):
                    return part[vaddr - start :][:size]
            raise XenError(EFAULT, "not mapped")

        sections = elfwriter.symbol_table(dict.fromkeys(names, PANICSTR & mask), bits)
        segment = elfwriter.Phdr(bytes(64), memsz=0x2000)
        (tmp_path / "kernel").write_bytes(elfwriter.elf([segment], sections, bits=bits))
        return Bsd(image.load(tmp_path / "kernel"), read)

    return make


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (b"no root\0more", "no root"),
        (b"no root\n\0", "no root"),
        (b"cut off where memory en", "cut off where memory en"),
        (b"", ""),
        (b"x" * 1000, "x" * MAX_MESSAGE),
    ],
)
def test_a_panic_has_its_words(bsd, words, message):
    kernel = bsd(WORDS, words)
    assert (kernel.panicked, kernel.panic_message) == (True, message)


def test_before_a_panic_there_are_none(bsd):
    kernel = bsd(0, b"no root\0")
    assert (kernel.panicked, kernel.panic_message) == (False, "")


def test_another_kernel_is_silent(bsd):
    kernel = bsd(WORDS, b"no root\0", names=("panic",))
    assert (kernel.panicked, kernel.panic_message) == (None, "")
