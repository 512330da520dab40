"""What it costs that gdb can go back, and how long it takes.

Debian's kernel boots with a gdb attached. A client of a few lines takes gdb's part. All times are
those of the processor, of xenemu and of its copies, so other work on this machine does not count.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench import files, report
from bench.rows import Figures, Group, Row
from xenemu.gdb.rsp import Decoder, Packet, encode

ROUNDS: Final = 5
STEPS: Final = 4
END_S: Final = {"pv": 3.0, "pvh": 1.55}  # of a boot, in the guest's time
PLACES: Final = 8  # from which to step back, over a boot
FIGURES: Final = (
    *("a boot, % more", "s for a first step back", "s for the next"),
    "s for a second back to a watchpoint",
)
WAITING: Final = re.compile(r"waiting for gdb: target remote \S+:(\d+)")
# A run whose only checkpoint is the first.
WITHOUT: Final = (
    "import sys; from xenemu.gdb import history; history.EVERY_S = 1e9;"
    " from xenemu.__main__ import main; main()"
)


class Client:
    """gdb's part."""

    def __init__(self, port: int, pid: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._decoder, self._payloads, self._pid = Decoder(), list[bytes](), pid
        self.ask(b"QStartNoAckMode")
        self._socket.sendall(b"+")

    def ask(self, payload: bytes) -> bytes:
        """The answer to a packet; texts for the person before it are passed over."""
        self._socket.sendall(encode(payload))
        while True:
            answer = self._next()
            if answer[:1] != b"O" or answer == b"OK":
                return answer

    def monitor(self, command: str) -> str:
        """What a monitor command shows."""
        self._socket.sendall(encode(b"qRcmd," + command.encode().hex().encode()))
        text = ""
        while (answer := self._next()) != b"OK":
            text += bytes.fromhex(answer[1:].decode()).decode()
        return text

    def now(self) -> float:
        """The guest's time, in seconds."""
        found = re.search(r"at (\S+) s", self.monitor("when"))
        assert found
        return float(found[1])

    def cost(self, payload: bytes) -> tuple[bytes, float]:
        """The answer, and how much time the processes have spent on it."""
        before = cpu_s(self._pid)
        return self.ask(payload), cpu_s(self._pid) - before

    def _next(self) -> bytes:
        while not self._payloads:
            data = self._socket.recv(1 << 16)
            events = self._decoder.feed(data) if data else [Packet(b"")]
            self._payloads += [event.payload for event in events if isinstance(event, Packet)]
        return self._payloads.pop(0)


def cpu_s(pid: int) -> float:
    """What a process and its children, also those that have ended, have spent."""
    spent = 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        with suppress(OSError):
            # proc(5): the command's name is in parentheses, and may have some in it.
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            spent += sum(map(int, fields[11 : 15 if one == str(pid) else 13])) / 100
    return spent


@contextmanager
def waiting(mode: str, folder: Path, *python: str) -> Iterator[Client]:
    """A boot that waits for gdb."""
    options = "run bzImage --initrd initrd.gz --cmdline console=hvc0 --gdb :0 --mode"
    command = [sys.executable, *(python or ("-m", "xenemu")), *options.split(), mode]
    with subprocess.Popen(
        command, cwd=folder, env=files.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr
        found = WAITING.search(process.stderr.readline())
        assert found
        try:
            yield Client(int(found[1]), process.pid)
        finally:
            process.kill()


def overhead(mode: str, folder: Path) -> float:
    """How much more a boot costs with checkpoints, as a part of one without."""
    spent: dict[tuple[str, ...], list[float]] = {(): [], ("-c", WITHOUT): []}
    for _ in range(ROUNDS):
        for python, costs in spent.items():
            with waiting(mode, folder, *python) as client:
                costs.append(client.cost(b"vCont;c")[1])
    with_, without = map(min, spent.values())
    return with_ / without - 1


def steps(mode: str, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds of first steps back, from places all over a boot, and of those that follow."""
    first, later = [], []
    end_s = 0.95 * END_S[mode]
    for number in range(PLACES):
        with waiting(mode, folder) as client:
            client.monitor(f"goto {int((number + 0.5) / PLACES * end_s * 1e6)}us")
            client.ask(b"vCont;c")
            costs = [client.cost(b"bs")[1] for _ in range(STEPS)]
            first.append(costs[0])
            later += costs[1:]
            print(mode, number, *(f"{cost:.2f}" for cost in costs), file=sys.stderr, flush=True)
    return first, later


def continuation(mode: str, folder: Path) -> float:
    """Seconds that a second of the guest's time takes, from the end to a watched store."""
    with waiting(mode, folder) as client:
        client.monitor(f"goto {END_S[mode] * 0.98:.6f}s")
        client.ask(b"vCont;c")
        found = re.match(r"0x(\w+)", client.monitor("symbols system_state"))
        assert found
        client.ask(b"Z2,%b,4" % found[1].encode())
        costs = []
        for _ in range(2):
            before_s = client.now()
            answer, cost_s = client.cost(b"bc")
            assert b"watch:" in answer, answer
            costs.append((before_s - client.now(), cost_s))
            print(mode, *costs[-1], file=sys.stderr, flush=True)
        way_s, cost_s = max(costs)
        return cost_s / way_s


def _row(mode: str) -> Row:
    def run(folder: Path) -> Mapping[str, float]:
        more = overhead(mode, folder)
        first, later = map(statistics.median, steps(mode, folder))
        figures = (more * 100, first, later, continuation(mode, folder))
        return dict(zip(FIGURES, figures, strict=True))

    return Row(mode.upper(), run)


def _prepare(folder: Path) -> list[Row]:
    files.put_kernel(folder)
    return [_row("pvh"), _row("pv")]


def _table(figures: Figures) -> str:
    return report.plain(figures, [(FIGURES[0], 1), *((name, 2) for name in FIGURES[1:])])


GROUP: Final = Group(
    "reverse",
    "gdb's ways back: steps, and to a watchpoint",
    minutes=6,
    prepare=_prepare,
    table=_table,
    rounds=1,  # of several boots each, whose medians are taken
)
