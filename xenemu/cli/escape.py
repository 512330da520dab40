"""What a person at the console asks xenemu for, and not the guest: Ctrl-], and a key after it.

A key stands for a request to `dom0.control`, as those are that come over a control channel. The
person is number 0 there, and the answers are told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from xenemu.cli.control import described

CTRL_BRACKET: Final = 0x1D
THE_PERSON: Final = 0
ITSELF: Final = "]"
SYSRQ: Final = "y"
HELP: Final = "?"
REQUESTS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "s": ("shuts the guest down", {"do": "shutdown"}),
    "r": ("reboots it", {"do": "shutdown", "how": "reboot"}),
    "p": ("pauses it", {"do": "pause"}),
    "u": ("unpauses it", {"do": "unpause"}),
    "n": ("sends it an NMI", {"do": "nmi"}),
    "i": ("shows its state", {"do": "status"}),
    "k": ("keeps it in the next --snapshot FILE", {"do": "snapshot"}),
}
HINT: Final = f"Ctrl-] again leaves; {HELP} lists what else there is"


def listed() -> str:
    """All keys, in a line."""
    keys = [f"{key} {what}" for key, (what, _) in REQUESTS.items()]
    keys += [f"{SYSRQ} and a key is SysRq", f"{ITSELF} is Ctrl-] for the guest"]
    return f"after Ctrl-]: Ctrl-] leaves; {', '.join(keys)}"


class Escape:
    """Reads what is typed: takes out what is for xenemu. `left`: the person wants to leave."""

    def __init__(self, tell: Callable[[str], None] = lambda sentence: None) -> None:
        self._tell = tell
        self._typed = ""  # after Ctrl-], up to now; without it, empty
        self._asked: list[Mapping[str, str]] = []
        self._is_hinted = False  # the person has been told, once, what may follow
        self.left = False

    def take(self, data: bytes) -> bytes:
        """What of the typed bytes is for the guest; what comes after a wish to leave is lost."""
        for_guest = bytearray()
        for byte in data:
            if self.left:
                break
            if self._typed:
                for_guest += self._go_on(byte)
            elif byte == CTRL_BRACKET:
                self._typed = "^"
                if not self._is_hinted:
                    self._is_hinted = True
                    self._tell(HINT)
            else:
                for_guest.append(byte)
        return bytes(for_guest)

    def _go_on(self, byte: int) -> bytes:
        """Take a key after Ctrl-], or one after that; what is for the guest."""
        key, before, self._typed = chr(byte), self._typed, ""
        if before == SYSRQ:
            self._asked.append({"do": "sysrq", "key": key})
        elif byte == CTRL_BRACKET:
            self.left = True
        elif key == ITSELF:
            return bytes([CTRL_BRACKET])
        elif key == SYSRQ:
            self._typed = SYSRQ
        elif key in REQUESTS:
            self._asked.append(REQUESTS[key][1])
        else:
            self._tell(listed())
        return b""

    def requests(self) -> list[bytes]:
        """What was asked since this was called last, for `dom0.control`."""
        asked, self._asked = self._asked, []
        return [b"%d %s" % (THE_PERSON, json.dumps(request).encode()) for request in asked]

    def answer(self, line: bytes) -> None:
        """Tell an answer."""
        answer: dict[str, Any] = json.loads(line)
        for sentence in described(answer):
            self._tell(sentence.removeprefix("xenemu: "))


class Calls(Protocol):
    """A control channel: a `xenemu.cli.channel.Channel`."""

    @property
    def reading(self) -> int | None: ...
    def receive(self, now_ns: int) -> list[bytes]: ...
    def send(self, now_ns: int, data: bytes) -> None: ...


class Asking:
    """All who ask: the person at the console, and a control channel if there is one.

    Implements `xenemu.machine.Source`.
    """

    writing = None

    def __init__(self, escape: Escape, channel: Calls | None) -> None:
        self._escape, self._channel = escape, channel

    @property
    def reading(self) -> int | None:
        """What to wait for; the terminal waits for the person."""
        return self._channel.reading if self._channel else None

    def receive(self, now_ns: int) -> Sequence[bytes]:
        """What they ask."""
        came = self._channel.receive(now_ns) if self._channel else []
        return [*self._escape.requests(), *came]

    def send(self, now_ns: int, data: bytes) -> None:
        """Answer one of them."""
        number, _, line = data.partition(b" ")
        if int(number) == THE_PERSON:
            self._escape.answer(line)
        elif self._channel:
            self._channel.send(now_ns, data)

    def flush(self) -> None:
        """All is sent as far as there is room."""
