"""An exception of the CPU's, on its way to the guest."""

from __future__ import annotations


class Fault(Exception):
    """An exception that the guest shall get instead of an instruction's effect.

    `vaddr` is the address of a page fault. The error code of that page fault lacks the U bit.
    """

    def __init__(self, vector: int, error_code: int = 0, vaddr: int = 0) -> None:
        super().__init__(vector, error_code, vaddr)
        self.vector = vector
        self.error_code = error_code
        self.vaddr = vaddr
