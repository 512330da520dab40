"""What a toolstack does to a domain that runs: the backend that verbs come to.

A verb is input from outside, as a packet is: bytes that come by `feed`, between two slices of the
guest. So a recording has verbs for nothing, and they do the same again. The bytes are the number of
who asks, and a line of JSON::

    3 {"id": 7, "do": "shutdown", "how": "reboot"}

The answer is a line for the same one, with the same `id`: ``{"id": 7, "ok": true, ...}``, or
``"ok": false`` with `error`, a sentence. If a verb needs the guest, its answer waits until the
guest has done its part, or until so much of the guest's time has passed. If the guest does it
afterwards, whoever asked gets an event, which is a line without `ok`. A number alone says that this
one has gone.

What verbs there are is told from above (`verbs`): those of `dom0.verbs` are what xl does to a
guest. Others, which do nothing to the guest, may be added.

In Xen: tools/xl, tools/libs/light/libxl_domain.c
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from math import isfinite
from typing import Any, Final

from xenemu.abi.sched import (
    SHUTDOWN_crash,
    SHUTDOWN_poweroff,
    SHUTDOWN_reboot,
    SHUTDOWN_soft_reset,
    SHUTDOWN_suspend,
    SHUTDOWN_watchdog,
)
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.xenstore_model import Connection, Event
from xenemu.dom0.xenstore_tree import WATCH_FIRED, Store
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.personality import Personality
from xenemu.hv.state.domain import Domain
from xenemu.records import dataclass

MAX_WAITING: Final = 64  # requests
MAX_WATCHES: Final = 64
MAX_SENT: Final = 4096  # lines that nobody has taken; the oldest are lost
MAX_UNSENT: Final = 8 << 20  # bytes of them
MAX_WITHIN_S: Final = 1e6
LAST_BYTE: Final = "\xff"  # as a character
REASONS: Final = {
    SHUTDOWN_poweroff: "poweroff",
    SHUTDOWN_reboot: "reboot",
    SHUTDOWN_suspend: "suspend",
    SHUTDOWN_crash: "crash",
    SHUTDOWN_watchdog: "watchdog",
    SHUTDOWN_soft_reset: "soft-reset",
}

NEEDED: Final = {"snapshot": "--snapshot", "dump": "--core"}  # for a verb, an option of run's

Answer = Mapping[str, Any]
Values = str | int | float | bool | None


class Refused(Exception):
    """A request that cannot be done; the words are for whoever asked."""


class Missing(Refused):
    """A request that lacks a field."""


@dataclass
class Ask:
    """A request: who asks, and its fields besides `id` and `do`. Plain data.

    All values may be given as text, as a command line gives them.
    """

    who: int
    fields: dict[str, Values]

    def text(self, name: str, default: str | None = None) -> str:
        """A field's text; Missing if there is none, and no default."""
        value = self.fields.get(name, default)
        if value is None:
            raise Missing(f"{name} is missing")
        return str(value)

    def one_of(self, name: str, choices: Iterable[str], default: str | None = None) -> str:
        """A field that is one of these words; Refused."""
        value, known = self.text(name, default), list(choices)
        if value not in known:
            raise Refused(f"{name} is {value[:40]!r}, and not one of {', '.join(known)}")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """A field that is a number, not negative; Refused."""
        value = self.text(name, None if default is None else str(default))
        if not (value.isascii() and value.isdecimal() and len(value) <= 20):
            raise Refused(f"{name} is {value[:40]!r}, which is no number")
        return int(value)

    def seconds(self, name: str, default: float) -> float:
        """A field that is a time in seconds; Refused."""
        value = self.text(name, str(default))
        try:
            seconds = float(value.removesuffix("s"))
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= MAX_WITHIN_S:
            raise Refused(f"{name} is {value[:40]!r}, which is no number of seconds")
        return seconds


@dataclass(frozen=True)
class Verb:
    """What can be asked for.

    * `do` does it. It returns the answer, or None if the answer must wait for the guest. Refused
      and XenError: it cannot be done, and nothing was.
    * `done` returns the answer once the guest has done its part, until then None.
    * `lacking` says, after `within_s` seconds of the guest's time, what the guest has not done.
    * `check` raises Refused for fields that no guest can be asked for, whatever it does.
    * `fields` are those that a request may have, in the order of a command line's words.
    """

    name: str
    usage: str  # the words after the name
    help: str
    do: Callable[[Control, Ask], Answer | None]
    done: Callable[[Control, Ask], Answer | None] | None = None
    lacking: Callable[[Control, Ask], str] | None = None
    within_s: float = 10
    fields: tuple[str, ...] = ()
    check: Callable[[Ask], object] = lambda ask: None

    def check_words(self, fields: Mapping[str, Values]) -> None:
        """Refused, with a sentence, if a request with these fields can only be a mistake."""
        ask = Ask(0, dict(fields))
        try:
            ask.seconds("within", self.within_s)
            self.check(ask)
        except Missing as missing:
            raise Refused(self.explained(missing)) from None

    def explained(self, missing: Missing) -> str:
        """What a request lacks, and what the verb wants."""
        return f"{missing}: {self.name} {self.usage}"


@dataclass
class Waiting:
    """A request whose answer waits for the guest. Plain data."""

    request_id: Values
    verb: str
    ask: Ask
    is_late: bool = False


@dataclass
class Control:
    """The toolstack's side of a domain's life."""

    verbs: Mapping[str, Verb] = field(default_factory=dict)
    store: Store = field(init=False)  # from `join` on, as the connection
    connection: Connection = field(init=False)
    current: Current = field(init=False)
    personality: Personality = field(init=False)
    waiting: dict[int, Waiting] = field(default_factory=dict)
    number: int = WATCH_FIRED  # of the last that waited, and of its timer
    watched: dict[bytes, tuple[int, str]] = field(default_factory=dict)  # by token: who, and path
    listeners: list[int] = field(default_factory=list)  # who wants events
    is_over: bool = False  # the guest has ended, and the listeners know
    is_crashed: bool = False  # the hypervisor has ended it
    is_destroyed: bool = False
    wish: str = ""  # what is to be done with a domain that is suspended and preserved
    sent: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=MAX_SENT))
    unsent: int = 0  # bytes in `sent`

    name = "control"
    has_room = listens = True

    # For verbs.

    @property
    def domain(self) -> Domain:
        return self.current.domain

    @property
    def home(self) -> str:
        """The domain's directory in the store."""
        return f"/local/domain/{self.domain.domid}"

    def read(self, path: str) -> str | None:
        """A node below `home`, or None; a byte is a character."""
        try:
            return self.store.read(self.connection, f"{self.home}/{path}").decode("latin-1")
        except XenError:
            return None

    def write(self, path: str, value: str | int) -> None:
        """Write a node below `home`."""
        self.store.write(self.connection, f"{self.home}/{path}", str(value).encode("latin-1"))

    def watch(self, ask: Ask, path: str) -> None:
        """Send whoever asks an event whenever this path changes; Refused, XenError."""
        if len(self.watched) >= MAX_WATCHES:
            raise Refused(f"there are {MAX_WATCHES} watches already")
        token = f"{ask.who} {path}".encode("latin-1")
        self.store.watch(self.connection, path, token)
        self.watched[token] = ask.who, path

    def say(self, event: str, **details: Values) -> None:
        """Tell all who listen that something has happened."""
        for who in self.listeners:
            self._send(who, {"event": event, **details})

    # Requests.

    def feed(self, domain: Domain, data: bytes) -> None:
        """Take a request, or the word that somebody has gone."""
        number, _, line = data.partition(b" ")
        if line:
            self._take(int(number), line)
        else:
            self._forget(int(number))
        self.store.wake(domain)

    def take_sent(self) -> Iterable[tuple[int, bytes]]:
        """The lines since this was asked last, each after the number of whom it is for."""
        sent, self.sent, self.unsent = self.sent, deque(maxlen=MAX_SENT), 0
        return sent

    def _take(self, who: int, line: bytes) -> None:
        request_id: Values = None
        verb = None
        try:
            request_id, request = parse(line)
            check_values(request)
            verb = self._verb(request)
            ask = Ask(who, request)
            within_s = ask.seconds("within", verb.within_s)
            if verb.done is not None and self._has_ended:
                raise Refused("the guest has ended")
            if verb.done is not None and len(self.waiting) >= MAX_WAITING:
                raise Refused(f"{MAX_WAITING} requests wait for the guest already")
            answer = verb.do(self, ask)
            if answer is None and verb.done is not None and within_s:
                answer = verb.done(self, ask)
        except (Refused, XenError) as error:
            words = verb.explained(error) if verb and isinstance(error, Missing) else str(error)
            self._answer(who, request_id, {"error": words})
            return
        if answer is not None or not within_s:
            self._answer(who, request_id, {"asked": True} if answer is None else answer)
            return
        self.number += 1
        self.waiting[self.number] = Waiting(request_id, verb.name, ask)
        due_ns = self.current.cpu.now_ns + int(within_s * 1e9)
        self.domain.timers.set((self.name, self.number), due_ns)

    def _verb(self, request: dict[str, Values]) -> Verb:
        """The verb that a request names, which has no other fields than the verb knows; Refused."""
        name = str(request.pop("do", ""))
        verb = self.verbs.get(name)
        if verb is None and name in NEEDED:
            raise Refused(f"{name}: the guest was started without {NEEDED[name]} FILE to write to")
        if verb is None:
            raise Refused(f"there is no verb {name[:40]!r}; there are {', '.join(self.verbs)}")
        known = [*verb.fields, "within"] if verb.done is not None else [*verb.fields]
        for field_name in request:
            if field_name not in known:
                takes = ", ".join(known) or "nothing"
                raise Refused(f"{name} has no {field_name[:40]!r}; it takes {takes}")
        return verb

    @property
    def _has_ended(self) -> bool:
        """Whether the guest has ended, and not by a suspend, after which it may go on."""
        return self.is_crashed or self.domain.shutdown_code not in (None, SHUTDOWN_suspend)

    def _forget(self, who: int) -> None:
        """Somebody has gone: nobody waits for answers, and watches for events, in this name."""
        self.listeners = [each for each in self.listeners if each != who]
        for number in [n for n, waiting in self.waiting.items() if waiting.ask.who == who]:
            self._drop(number)
        for token, (watcher, path) in list(self.watched.items()):
            if watcher == who:
                self.store.unwatch(self.connection, path, token)
                del self.watched[token]

    def _drop(self, number: int) -> Waiting:
        self.domain.timers.cancel((self.name, number))
        return self.waiting.pop(number)

    # Answers.

    def _send(self, who: int, said: Mapping[str, Any]) -> None:
        if self.unsent > MAX_UNSENT:  # with an `id` of whatever length
            said = {"id": None, "ok": False, "error": "too much is asked at once"}
        line = f"{who} {json.dumps(said)}".encode()
        self.unsent += len(line)
        self.sent.append((self.current.cpu.now_ns, line))

    def _answer(self, who: int, request_id: Values, answer: Answer) -> None:
        self._send(who, {"id": request_id, "ok": "error" not in answer, **answer})

    def pump(self, domain: Domain) -> None:
        """Answer those for whom the guest has done its part."""
        if self.waiting:
            self._look()
        if self.is_crashed:
            return
        if domain.shutdown_code is None:
            self.is_over = False
        elif not self.is_over:
            self.end(REASONS.get(domain.shutdown_code, str(domain.shutdown_code)))

    def crash(self) -> None:
        """The hypervisor has ended the guest."""
        self.is_crashed = True
        self.end(REASONS[SHUTDOWN_crash])

    def end(self, reason: str) -> None:
        """The guest has ended: tell those who wait for it, and those who listen."""
        self.is_over = True
        for number, waiting in list(self.waiting.items()):
            self._drop(number)
            if not waiting.is_late:
                answer = {"error": "the guest has ended before it did this"}
                self._answer(waiting.ask.who, waiting.request_id, answer)
        self.say("shutdown", reason=reason)

    def _look(self) -> None:
        for number, waiting in list(self.waiting.items()):
            verb = self.verbs.get(waiting.verb)
            answer: Answer | None = {"error": f"there is no verb {waiting.verb!r} any more"}
            if verb is not None and verb.done is not None:
                answer = verb.done(self, waiting.ask)
            if answer is None:
                continue
            self._drop(number)
            if not waiting.is_late:
                self._answer(waiting.ask.who, waiting.request_id, answer)
            elif "error" not in answer:
                late = {"event": "late", "id": waiting.request_id, "do": waiting.verb}
                self._send(waiting.ask.who, {**late, **answer})

    def notify(self, domain: Domain, port: int) -> None:
        """It has no ports."""

    def timer(self, domain: Domain, number: int, now_ns: int) -> None:
        """A watch has fired, or a request has waited long enough."""
        if number == WATCH_FIRED:
            self._take_events()
        elif number in self.waiting:
            self._look()
            if waiting := self.waiting.get(number):
                verb = self.verbs[waiting.verb]
                assert verb.lacking is not None
                waiting.is_late = True
                within_s = waiting.ask.seconds("within", verb.within_s)
                said = f"{verb.lacking(self, waiting.ask)} within {within_s:g} s of its time"
                self._answer(waiting.ask.who, waiting.request_id, {"error": said})

    def _take_events(self) -> None:
        events: list[Event] = [*self.connection.events]
        self.connection.events.clear()
        for event in events:
            self.connection.delivered(event)
            who, watched = self.watched.get(event.token, (None, ""))
            if who is None:
                continue
            told: dict[str, Values] = {"event": "watch", "watched": watched, "path": event.path}
            try:
                value = self.store.read(self.connection, event.path)
                told["value"] = value.decode("latin-1")
            except XenError:
                told["value"] = None
            self._send(who, told)

    # A backend's life.

    def join(self, store: Store) -> None:
        """Have a store, which has no session of this one's."""
        self.store, self.connection = store, store.connect(0, self.name)
        self.is_over = self.is_crashed = False

    def connect(self, domain: Domain) -> None:
        """It has no pages and no ports."""

    def disconnect(self, domain: Domain) -> None:
        """End the session, and its watches. Requests go on waiting for the domain that follows."""
        self.store.disconnect(self.connection)
        domain.timers.cancel((self.name, WATCH_FIRED))
        self.watched.clear()

    def held(self, domain: Domain) -> Iterator[int]:
        yield from ()

    def check(self, domain: Domain) -> Iterator[str]:
        yield from ()

    def save(self) -> object:
        return copy.deepcopy({name: getattr(self, name) for name in STATE})

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        for name, value in copy.deepcopy(state).items():
            setattr(self, name, value)


STATE: Final = (
    *("waiting", "number", "watched", "listeners"),
    *("is_over", "is_crashed", "is_destroyed", "wish"),
)


def find_device(control: Control, ask: Ask) -> BusBackend:
    """The device that a request names; Refused."""
    wanted = ask.text("device")
    devices = [each for each in control.domain.backends.values() if isinstance(each, BusBackend)]
    for device in devices:
        if wanted in (device.label, device.name):
            return device
    known = ", ".join(device.label for device in devices) or "none"
    how = "name it when the guest starts, as in --disk FILE,later"
    raise Refused(f"there is no device {wanted[:40]!r}; there are {known}; {how}")


def parse(line: bytes) -> tuple[Values, dict[str, Any]]:
    """A request's id and its other fields; Refused if it is no JSON object, or has no plain id."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("this is no line of JSON") from None
    if not isinstance(request, dict):
        raise Refused('a request is an object, such as {"do": "status"}')
    request_id = request.pop("id", None)
    if not _is_plain(request_id):
        raise Refused("'id' is no plain value")
    return request_id, request


def check_values(request: Mapping[str, Any]) -> None:
    """Refused if a value is not plain, or text that is no bytes."""
    for name, value in request.items():
        if not _is_plain(value):
            raise Refused(f"{name[:40]!r} is no plain value")
        if isinstance(value, str) and max(value, default="") > LAST_BYTE:
            raise Refused(f"{name[:40]!r} has a character that is no byte: U+0000 to U+00FF are")


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return value is None or isinstance(value, str | int)
