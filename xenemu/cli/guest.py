"""What an attended run is of: a kernel to boot, or a machine to go on with."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from xenemu import image
from xenemu.dom0.bus import BusBackend
from xenemu.errors import UsageError
from xenemu.machine import DomainConfig, Machine
from xenemu.options import format_size
from xenemu.records import dataclass

Load = Callable[[], image.Image]


class Guest(Protocol):
    """Where the machine of a run comes from."""

    kernel: Path

    @property
    def memory(self) -> int:
        """Bytes, as the person asked for them."""

    @property
    def verb(self) -> str:
        """What is done with the kernel, for the person."""

    def load(self) -> Load:
        """Load the kernel, at the latest when it is asked for; `ImageError`, `UsageError`."""

    def build(self, load: Load, devices: Sequence[BusBackend]) -> Machine:
        """Make the machine; `ImageError`, `FitError`, `UsageError`."""


@dataclass
class Fresh:
    """A kernel to boot."""

    kernel: Path
    mode: str
    config: DomainConfig
    draft_notes: image.DraftNotes | None = None
    verb: str = "booting"

    @property
    def memory(self) -> int:
        return self.config.memory

    def load(self) -> Load:
        loaded = image.load(self.kernel)
        if self.draft_notes is not None:
            loaded = replace(loaded, draft_notes=self.draft_notes)
        return lambda: loaded

    def build(self, load: Load, devices: Sequence[BusBackend]) -> Machine:
        try:
            return Machine(load(), self.config, self.mode, devices)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            size = format_size(self.memory)
            raise UsageError(f"--memory: this host has no {size} to give; try less") from None
