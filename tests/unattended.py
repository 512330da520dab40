"""A terminal without a person, for `Machine.run`."""

from __future__ import annotations

from collections.abc import Sequence

from xenemu.outcome import Outcome


class Unattended:
    """Keeps what is shown, and lets the guest run; a test says otherwise in a subclass."""

    interactive = False
    exhausted = True
    due_ns: int | None = None

    def __init__(self) -> None:
        self.shown = bytearray()

    def write(self, data: bytes) -> None:
        """Keep what the guest printed."""
        self.shown += data

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        """Nothing is typed."""
        return b""

    def leaves(self) -> bool:
        """Nobody is there to leave."""
        return False

    def check(self) -> Outcome | None:
        """Nobody is there to stop it."""
        return None
