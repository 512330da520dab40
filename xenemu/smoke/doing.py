"""What a plan, or a test, has the toolstack do to a guest while it runs."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

from xenemu.records import dataclass
from xenemu.smoke.plan import Deed
from xenemu.smoke.transcript import Transcript


@dataclass
class Doing:
    """Asks `dom0.control`, one request at a time. Implements `xenemu.machine.Source`.

    Each deed of a plan waits for the console to show something after what the deed before it waited
    for, and for the answer to that one. `failed` is told of each that was refused, or that the
    guest did not do in time. A program's own request has its answer in `answer`.
    """

    deeds: deque[Deed]
    failed: Callable[[str], None]
    answer: Mapping[str, Any] | None = None
    who: int = 1  # the number of who asks; what others asked before is answered to them
    is_held: bool = False  # nothing is to be asked for now
    _console: Transcript = field(default_factory=Transcript)
    _asks: list[bytes] = field(default_factory=list)
    _under_way: str = ""  # the words of the deed that has no answer yet
    _is_own: bool = False  # the request under way is a program's

    reading = writing = None

    def ask(self, request: Mapping[str, object]) -> None:
        """Ask for something when the guest runs again."""
        self.answer, self._is_own = None, True
        self._asks.append(b"%d %s" % (self.who, json.dumps(request).encode()))

    def give_up(self, why: str) -> None:
        """The answer has not come in time: that is the answer, and what comes is nobody's."""
        self.answer, self._is_own = {"ok": False, "error": why}, False
        if not self._under_way:
            self.who += 1

    def shown(self, data: bytes, now_ns: int) -> None:
        """See what the guest has printed."""
        if self.deeds:
            self._console.feed(data, now_ns)

    @property
    def waits(self) -> bool:
        """Whether something is to be asked for now."""
        self._advance()
        return bool(self._asks)

    @property
    def is_over(self) -> bool:
        """Whether all deeds are done, and answered."""
        return not (self.deeds or self._under_way)

    @property
    def is_asking(self) -> bool:
        """Whether an answer is to come, which it does in time."""
        return bool(self._under_way) or self._is_own

    @property
    def unmet(self) -> list[str]:
        """What deeds wait for."""
        return [deed.after for deed in self.deeds if deed.after]

    def _advance(self) -> None:
        if self.deeds and not self._under_way and not self.is_held:
            deed = self.deeds[0]
            if not deed.after or self._console.find(re.compile(deed.after, re.MULTILINE)):
                self._under_way = deed.action
                self._asks.append(b"%d %s" % (self.who, deed.request.encode()))
                self.deeds.popleft()

    # Source.

    def receive(self, now_ns: int) -> Sequence[bytes]:
        """What is asked for."""
        self._advance()
        if self.is_held:
            return []
        asks, self._asks = self._asks, []
        return asks

    def send(self, now_ns: int, data: bytes) -> None:
        """Take an answer; events are for nobody."""
        who, _, text = data.partition(b" ")
        answer = json.loads(text)
        if "ok" not in answer or int(who) != self.who:
            return
        if self._under_way:
            words, self._under_way = self._under_way, ""
            if not answer["ok"]:
                self.failed(f"{words}: {answer['error']}")
        elif self._is_own:
            self.answer, self._is_own = answer, False

    def flush(self) -> None:
        """All is sent at once."""
