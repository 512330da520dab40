"""A CPU for the time in which a domain is made, and has none."""

from __future__ import annotations

from typing import Any, Final


class IdleCpu:
    """It has translated nothing, so there is nothing to forget."""

    now_ns = 0

    def flush_tlb(self) -> None:
        """See `hv.cpu.Cpu`."""


IDLE_CPU: Final[Any] = IdleCpu()
