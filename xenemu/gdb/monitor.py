"""The monitor commands: what a person asks of the hypervisor, past gdb."""

from __future__ import annotations

from collections.abc import Callable

from xenemu.gdb.files import Files
from xenemu.gdb.target import Target


class Monitor:
    """Runs one line at a time. `say` shows a text at once; `request` holds the guest."""

    def __init__(
        self,
        target: Target,
        files: Files,
        say: Callable[[str], None],
        request: Callable[[str], None],
    ) -> None:
        self._target = target
        self.x = 1

    def reset(self) -> None:
        """The gdb that gave commands is gone."""

    def run(self, line: str) -> str:
        """Run a command; what it prints."""
        if line == "arch auto":
            self._target.follows_mode = True
            return "ok"
        return f"there is no command {line!r}\n"
