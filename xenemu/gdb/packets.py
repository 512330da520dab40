"""What each packet of gdb's means, while the guest is held.

A handler returns the answer's payload: ``OK``, ``E.`` and a sentence, data, or empty for what is
not supported. `Go` lets the guest run, `Back` takes it back, and None kills it.

gdb manual: Packets; General Query Packets; Host I/O Packets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from xenemu.gdb.features import Register, describe
from xenemu.gdb.files import Files
from xenemu.gdb.history import History
from xenemu.gdb.monitor import Monitor
from xenemu.gdb.places import Places
from xenemu.gdb.rsp import PACKET_SIZE, hex_text, number
from xenemu.gdb.stops import DETACHED, FREELY, STEP, Action, Back, Go, Stop
from xenemu.gdb.target import Refused, Target
from xenemu.hv.debug import MAX_BREAKPOINTS, MAX_WATCHPOINTS, Access, Watchpoint

Answer = bytes | Go | Back | None

SUPPORTED: Final = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;exec-events+;"
    "qXfer:features:read+;qXfer:exec-file:read+;qXfer:memory-map:read+;qXfer:threads:read+;"
    "ReverseStep+;ReverseContinue+"
).encode()
WATCH_TYPES: Final = {2: Access.WRITE, 3: Access.READ, 4: Access.READ | Access.WRITE}
MAX_READ: Final = (PACKET_SIZE - 16) // 2
NOT_MAPPED: Final = b"E0e"  # EFAULT
MAX_TEXT: Final = 1 << 14
SEARCH_CHUNK: Final = 1 << 20
MAX_HOLES: Final = 1 << 14  # pages that are not mapped, in one search
VCONT: Final = re.compile(
    rb"(?P<action>[csCStr])(?P<a>[0-9a-fA-F]+)?(?:,(?P<b>[0-9a-fA-F]+))?(?::(?P<thread>-?[0-9a-f]+))?"
)
EXPEDITED: Final = {"rip", "rsp", "rbp", "eip", "esp", "ebp"}
# All of the address space is memory: without a map, gdb would guess at nothing else.
MEMORY_MAP: Final = """\
<?xml version="1.0"?>
<!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN"
 "http://sourceware.org/gdb/gdb-memory-map.dtd">
<memory-map>
<memory type="ram" start="0x0" length="0x8000000000000000"/>
<memory type="ram" start="0x8000000000000000" length="0x8000000000000000"/>
</memory-map>
"""


class Packets:
    """What one gdb has said; `say` shows the person at it a text, `tell` the one at xenemu."""

    def __init__(
        self,
        target: Target,
        history: History,
        say: Callable[[str], None],
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._target, self._say = target, say
        self._files = Files(target, tell)
        self._files.prepare()
        self.requested = ""  # why the guest is to be held, if that is not gdb's own doing
        self.places = Places(target.machine, history, target.code.format)
        self._monitor = Monitor(target, self._files, self.places, say, self._request)
        self._handlers = _handlers(self)
        self.reset()

    def reset(self) -> None:
        """Forget the gdb that was: its breakpoints are gone, and the next one acknowledges."""
        self.acknowledged = True
        self._follows_exec = False
        self.hardware: set[int] = set()
        self.software: set[int] = set()
        self.watches: set[Watchpoint] = set()
        self._target.select(self._target.current_thread)
        self._goes: int | None = None  # the thread that `c` and `s` are about; None: any
        self._monitor.reset()
        self.places.stay()
        self._files.close_all()

    @property
    def breakpoints(self) -> set[int]:
        """Where to hold the guest."""
        return self.hardware | self.software

    def _request(self, sentence: str) -> None:
        self.requested = sentence
        self._target.machine.debug.request_halt()

    def handle(self, payload: bytes, stop: Stop) -> Answer:
        """Answer a packet; `stop` is why the guest is held."""
        self._last_stop = stop
        for prefix, handler in self._handlers:
            if payload.startswith(prefix):
                try:
                    return handler(payload[len(prefix) :])
                except Refused as refused:
                    return f"E.{refused}".encode()
                except (ValueError, IndexError):
                    return b"E.malformed packet"
        return b""

    def answered(self, payload: bytes) -> None:
        """The answer to this packet is sent."""
        if payload == b"QStartNoAckMode":
            self.acknowledged = False

    def stopped(self) -> None:
        """The guest is held anew: what follows is about the vcpu in the CPU."""
        self._target.select(self._target.current_thread)
        self._monitor.stopped()

    def catch_again(self) -> None:
        """The guest has been taken back, and nothing was caught on the way."""
        self.requested = ""
        self._monitor.catch_again()

    # What gdb asks first.

    def supported(self, features: bytes) -> Answer:
        """What this stub can do."""
        self._follows_exec = b"exec-events+" in features
        self._target.describe_now()
        return SUPPORTED

    def ok(self, _rest: bytes) -> Answer:
        """Agreed, and nothing to do."""
        return b"OK"

    def why(self, _rest: bytes) -> Answer:
        """Why the guest is held."""
        return self.stop_reply(self._last_stop)

    def redescribes(self) -> bytes | None:
        """The packet that makes gdb read the description anew, if it must do so first."""
        if not self._follows_exec or not self._target.describe_now():
            return None
        return b"T05exec:%s;thread:%x;" % (
            self._files.path.encode().hex().encode(),
            self._target.current_thread,
        )

    def stop_reply(self, stop: Stop) -> bytes:
        """A stop, with the registers that gdb asks for each time. The thread is selected then."""
        self._target.select(self._target.current_thread)
        fields = [
            f"{index:x}:{self._target.read_register(register).hex()}"
            for index, register in enumerate(self._target.description.registers)
            if register.name in EXPEDITED
        ]
        if stop.reason:
            fields.append(f"{stop.reason}:{stop.value}")
        fields.append(f"thread:{self._target.current_thread:x}")
        return f"T{stop.signal:02x}{';'.join(fields)};".encode()

    # Threads.

    def select_thread(self, rest: bytes) -> Answer:
        """``Hg``, ``Hc``: which thread the following is about; 0 and -1 are any."""
        kind, thread = rest[:1], None if rest[1:] in (b"0", b"-1") else number(rest[1:])
        if kind not in (b"g", b"c"):
            return b""
        if thread is not None:
            self._target.vcpu(thread)
        if kind == b"c":
            self._goes = thread
        elif thread is not None:
            self._target.select(thread)
        return b"OK"

    def is_alive(self, rest: bytes) -> Answer:
        """``T``: whether a thread is there."""
        self._target.vcpu(number(rest))
        return b"OK"

    def thread_list(self, _rest: bytes) -> Answer:
        """``qfThreadInfo``."""
        return b"m" + b",".join(b"%x" % thread for thread in self._target.threads)

    def thread_list_end(self, _rest: bytes) -> Answer:
        """``qsThreadInfo``."""
        return b"l"

    def current_thread(self, rest: bytes) -> Answer:
        """``qC``."""
        return b"" if rest else b"QC%x" % self._target.current_thread

    def thread_text(self, rest: bytes) -> Answer:
        """``qThreadExtraInfo``."""
        thread = number(rest)
        name, state = self._target.thread_name(thread), self._target.thread_state(thread)
        return hex_text(f"{name}, {state}")

    # Registers.

    def _register(self, text: bytes) -> Register:
        return self._target.description.registers[number(text)]

    def read_registers(self, _rest: bytes) -> Answer:
        """``g``."""
        return self._target.registers().hex().encode()

    def write_registers(self, rest: bytes) -> Answer:
        """``G``."""
        self._target.write_registers(bytes.fromhex(rest.decode("ascii")))
        return b"OK"

    def read_register(self, rest: bytes) -> Answer:
        """``p``."""
        return self._target.read_register(self._register(rest)).hex().encode()

    def write_register(self, rest: bytes) -> Answer:
        """``P``."""
        which, _, value = rest.partition(b"=")
        self._target.write_register(self._register(which), bytes.fromhex(value.decode("ascii")))
        return b"OK"

    # Memory.

    def read_memory(self, rest: bytes) -> Answer:
        """``m``: as much as is mapped. gdb takes a sentence here for data."""
        vaddr, size = map(number, rest.split(b","))
        try:
            return self._target.read_memory(vaddr, min(size, MAX_READ)).hex().encode()
        except Refused:
            return NOT_MAPPED

    def write_memory(self, rest: bytes) -> Answer:
        """``M``."""
        place, _, data = rest.partition(b":")
        return self._write(place, bytes.fromhex(data.decode("ascii")))

    def write_binary(self, rest: bytes) -> Answer:
        """``X``."""
        place, _, data = rest.partition(b":")
        return self._write(place, data)

    def _write(self, place: bytes, data: bytes) -> Answer:
        vaddr, size = map(number, place.split(b","))
        if size != len(data):
            raise ValueError(f"{len(data)} bytes where {size} were announced")
        self._target.write_memory(vaddr, data)
        return b"OK"

    def search_memory(self, rest: bytes) -> Answer:
        """``qSearch:memory``: the first place of a pattern in a range; unmapped pages have none."""
        start, length, pattern = rest.split(b";", 2)
        at, end, holes = number(start), number(start) + number(length), 0
        while at < end:
            size = min(SEARCH_CHUNK, end - at)
            try:
                data = self._target.read_memory(at, size)
            except Refused:
                at, holes = (at | 0xFFF) + 1, holes + 1
                if holes > MAX_HOLES:
                    raise
                continue
            found = data.find(pattern)
            if found >= 0:
                return b"1,%x" % (at + found)
            last = len(data) == size == end - at
            at += max(1, len(data) if last else len(data) - len(pattern) + 1)
        return b"0"

    # Breakpoints and watchpoints.

    def insert(self, rest: bytes) -> Answer:
        """``Z``: at an address, whether or not something is mapped there yet."""
        return self._change(rest, set.add)

    def remove(self, rest: bytes) -> Answer:
        """``z``."""
        return self._change(rest, set.discard)

    def _change(self, rest: bytes, change: Callable[[set, object], None]) -> Answer:  # type: ignore[type-arg]
        kind, vaddr, size = (number(field) for field in rest.split(b";")[0].split(b","))
        if vaddr >> 64:
            raise ValueError(f"{vaddr:#x} is no address")
        if kind in (0, 1):
            for place in self._target.aliases(vaddr):
                change(self.hardware if kind else self.software, place)
        elif kind in WATCH_TYPES:
            if not 0 < size <= 4096:
                raise Refused(f"a watchpoint of {size} bytes: 1 to 4096 can be watched")
            change(self.watches, Watchpoint(vaddr, size, WATCH_TYPES[kind]))
        else:
            return b""
        if len(self.watches) > MAX_WATCHPOINTS or len(self.breakpoints) > MAX_BREAKPOINTS:
            self.remove(rest)
            raise Refused("too many breakpoints or watchpoints")
        return b"OK"

    # Going on.

    def vcont_actions(self, _rest: bytes) -> Answer:
        """``vCont?``."""
        return b"vCont;c;C;s;S;t;r"

    def vcont(self, rest: bytes) -> Answer:
        """``vCont``: for each thread, the first action that names it, or all, counts."""
        threads: dict[int, Action | None] = {}
        for text in rest.split(b";"):
            found = VCONT.fullmatch(text)
            if not found:
                raise ValueError(f"vCont action {text!r}")
            action, thread = _action(found), found["thread"]
            if thread is None or thread.startswith(b"-") or number(thread) == 0:
                return Go(threads, action)
            self._target.vcpu(number(thread))
            threads.setdefault(number(thread), action)
        return Go(threads)

    def go(self, rest: bytes) -> Answer:
        """``c``, from an address if one is given."""
        return self._go(rest, FREELY)

    def step(self, rest: bytes) -> Answer:
        """``s``."""
        return self._go(rest, STEP)

    def _go(self, rest: bytes, action: Action) -> Answer:
        if rest:
            self._target.select(self._goes or self._target.current_thread)
            self._target.jump(number(rest))
        return Go({}, action) if self._goes is None else Go({self._goes: action})

    def detach(self, _rest: bytes) -> Answer:
        """``D``: the guest runs on alone."""
        return DETACHED

    def kill(self, _rest: bytes) -> Answer:
        """``k``, ``vKill``: the run ends."""
        return None

    # Documents, files, commands.

    def transfer(self, rest: bytes) -> Answer:
        """``qXfer:OBJECT:read:ANNEX:OFFSET,LENGTH``."""
        name, verb, annex, window = rest.split(b":")
        offset, length = map(number, window.split(b","))
        if verb != b"read":
            return b""
        document = self._document(name.decode("ascii"), annex.decode("ascii"))
        if document is None:
            return b""
        piece = document[offset : offset + min(length, MAX_READ)]
        return (b"l" if offset + len(piece) >= len(document) else b"m") + piece

    def _document(self, name: str, annex: str) -> bytes | None:
        target = self._target
        if name == "features" and annex == "target.xml":
            return describe(target.description).encode()
        if name == "exec-file":
            return self._files.path.encode()
        if name == "memory-map":
            return MEMORY_MAP.encode()
        if name == "threads":
            lines = [
                f'<thread id="{thread:x}" core="0" name="{target.thread_name(thread)}">'
                f"{target.thread_state(thread)}</thread>"
                for thread in target.threads
            ]
            return "\n".join(['<?xml version="1.0"?>', "<threads>", *lines, "</threads>"]).encode()
        return None

    def file(self, rest: bytes) -> Answer:
        """``vFile``."""
        return self._files.handle(rest)

    def command(self, rest: bytes) -> Answer:
        """``qRcmd``: a monitor command."""
        text = self._monitor.run(bytes.fromhex(rest.decode("ascii")).decode(errors="replace"))
        for at in range(0, len(text), MAX_TEXT):
            self._say(text[at : at + MAX_TEXT])
        return b"OK"


def _action(found: re.Match[bytes]) -> Action | None:
    """What an action of vCont's makes of a thread; `t` leaves it where it is."""
    match found["action"]:
        case b"s" | b"S":
            return STEP
        case b"r":
            return Action(True, range(number(found["a"]), number(found["b"])))
        case b"t":
            return None
    return FREELY


def _handlers(packets: Packets) -> list[tuple[bytes, Callable[[bytes], Answer]]]:
    """By prefix; the first that fits."""
    table: dict[bytes, Callable[[bytes], Answer]] = {
        b"qSupported": packets.supported,
        b"QStartNoAckMode": packets.ok,
        b"?": packets.why,
        b"H": packets.select_thread,
        b"T": packets.is_alive,
        b"qfThreadInfo": packets.thread_list,
        b"qsThreadInfo": packets.thread_list_end,
        b"qC": packets.current_thread,
        b"qThreadExtraInfo,": packets.thread_text,
        b"qAttached": lambda _: b"1",
        b"qSymbol": packets.ok,
        b"g": packets.read_registers,
        b"G": packets.write_registers,
        b"p": packets.read_register,
        b"P": packets.write_register,
        b"m": packets.read_memory,
        b"M": packets.write_memory,
        b"X": packets.write_binary,
        b"qSearch:memory:": packets.search_memory,
        b"Z": packets.insert,
        b"z": packets.remove,
        b"vCont?": packets.vcont_actions,
        b"vCont;": packets.vcont,
        b"vCtrlC": packets.ok,
        b"vKill": packets.kill,
        b"vFile:": packets.file,
        b"c": packets.go,
        b"s": packets.step,
        b"bs": lambda _: Back(stepping=True),
        b"bc": lambda _: Back(stepping=False),
        b"D": packets.detach,
        b"k": packets.kill,
        b"qXfer:": packets.transfer,
        b"qRcmd,": packets.command,
    }
    return list(table.items())
