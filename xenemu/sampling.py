"""Where a guest spends its time, from a look at each vcpu now and then.

A slice ends somewhere in the vcpu's code. `Samples` keeps that place, if the last look at the same
vcpu is at least 10 ms of virtual time ago. So short slices count for no more than long ones. What
is kept is bounded. It follows virtual time alone, so it is the same in each run.

It is read only when somebody asks. Then four patterns have a name:

* *waiting*: nearly every look finds the vcpu blocked
* *a program*: nearly every look finds it in user space
* *a loop*: nearly every look finds it in one of a few functions
* *a livelock*: the same, while it makes the same few hypercalls all the time

A pattern counts only after the guest has been silent for some looks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from xenemu.decode import call_name
from xenemu.hv.calls import KEPT as KEPT_CALLS
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current
from xenemu.peek import Code, caller, in_kernel

INTERVAL_NS: Final = 10_000_000
KEPT: Final = 256  # looks at each vcpu
SHOWN: Final = 5  # places
ENOUGH: Final = 10  # looks, for a pattern
NEARLY_ALL: Final = 0.9
FEW: Final = 4  # places or hypercalls, in a loop
OFTEN_NS: Final = 100_000  # from one hypercall to the next, in a livelock
BLOCK: Final = 256  # bytes of code that count as one place where there are no names

WAITING: Final = "waiting for events"
PROGRAM: Final = "in a program"
IDLES: Final = "waiting nearly all the time"


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a vcpu: where its kernel was, or `WAITING` or `PROGRAM`, and its last hypercall."""

    at_ns: int
    place: int | str
    call: CallRecord | None


@dataclass
class Samples:
    """The latest looks at each vcpu of a domain."""

    of_vcpu: dict[int, deque[Sample]] = field(default_factory=dict)
    spoke_ns: int = 0  # when the guest last printed something

    def spoke(self, now_ns: int) -> None:
        """Note that the guest has printed something."""
        self.spoke_ns = now_ns

    def take(self, current: Current) -> None:
        """Look at the current vcpu, whose slice has ended, if it is time."""
        now_ns = current.cpu.now_ns
        kept = self.of_vcpu.get(current.vcpu.vcpu_id)
        if kept is None:
            kept = self.of_vcpu[current.vcpu.vcpu_id] = deque(maxlen=KEPT)
        elif now_ns < kept[-1].at_ns + INTERVAL_NS:
            return
        calls = current.domain.calls
        call = calls[-1] if calls else None
        kept.append(Sample(now_ns, _place(current, call), call))

    def lines(self, code: Code) -> list[str]:
        """Where each vcpu has spent its time, a line each, for a report."""
        found = []
        for vcpu_id, kept in sorted(self.of_vcpu.items()):
            whose = f"vcpu {vcpu_id}, " if len(self.of_vcpu) > 1 else ""
            found.append(f"{whose}of the last {len(kept)} samples: {_shares(kept, code)}")
        return found

    def pattern(self, current: Current, code: Code) -> str:
        """What the domain has been doing since it fell silent, as words to put after a sentence.

        Nothing if that is not clear. Of several vcpus, those are named that were busy with little;
        that they wait is said if none was.
        """
        busy: dict[str, list[int]] = {}
        waiting, is_clear = True, False
        for vcpu_id, kept in sorted(self.of_vcpu.items()):
            silent = [sample for sample in kept if sample.at_ns > self.spoke_ns]
            enough = len(silent) >= ENOUGH
            words = _doing(silent, current, code, vcpu_id) if enough else ""
            waiting &= words == IDLES or not (enough or current.domain.vcpus[vcpu_id].runnable)
            if words and words != IDLES:
                busy.setdefault(words, []).append(vcpu_id)
            is_clear |= bool(words)
        if not (is_clear and (busy or waiting)):
            return ""
        since = f"silent in its last {(current.cpu.now_ns - self.spoke_ns) / 1e9:.3f} s"
        if not busy:
            return f"{IDLES}, and {since}"
        if len(current.domain.vcpus) > 1:
            each = [f"{_vcpus(vcpu_ids)} {words}" for words, vcpu_ids in busy.items()]
            return f"with {' and '.join(each)}, and {since}"
        (words,) = busy
        return f"{words}, and {since}"


def _vcpus(vcpu_ids: Sequence[int]) -> str:
    return " and ".join(f"vcpu {vcpu_id}" for vcpu_id in vcpu_ids)


def _doing(silent: Sequence[Sample], current: Current, code: Code, vcpu_id: int) -> str:
    """What a vcpu was doing nearly all the time; nothing if that is not clear."""
    places = Counter(_name(sample.place, code) for sample in silent)
    top = places.most_common(FEW)
    if places[WAITING] >= NEARLY_ALL * len(silent):
        return IDLES
    if places[PROGRAM] >= NEARLY_ALL * len(silent):
        return "with a program that runs nearly all the time"
    few = sum(count for _, count in top) >= NEARLY_ALL * len(silent)
    if not few or top[0][0] in (WAITING, PROGRAM):
        return ""
    calls = _repeated(silent, current, vcpu_id)
    return f"in a livelock with nothing but {calls}" if calls else f"in a loop in {top[0][0]}"


def _place(current: Current, call: CallRecord | None) -> int | str:
    if not current.vcpu.runnable:
        return WAITING
    if not in_kernel(current):
        return PROGRAM
    rip = current.cpu.rip
    # In a hypercall's stub, which all callers share.
    return caller(current) if call is not None and call.rip == rip else rip


def _name(place: int | str, code: Code) -> str:
    if isinstance(place, str):
        return place
    name, offset, _ = code.format(place).partition("+0x")
    start = place - place % BLOCK
    return name if offset else f"{start:#x}-{start + BLOCK - 1:#x}"


def _shares(kept: Sequence[Sample], code: Code) -> str:
    places = Counter(_name(sample.place, code) for sample in kept)
    shares = [f"{100 * count / len(kept):.0f}% {name}" for name, count in places.most_common(SHOWN)]
    others = len(places) - SHOWN
    if others > 0:
        shares.append(f"the rest in {others} other place{'s' if others > 1 else ''}")
    return ", ".join(shares)


def _repeated(silent: Sequence[Sample], current: Current, vcpu_id: int) -> str:
    """The few hypercalls that a vcpu makes all the time; nothing if they are many, or rare."""
    log = current.domain.calls
    own = [record for record in log if record.vcpu_id == vcpu_id]
    if len(log) < KEPT_CALLS or len(own) < ENOUGH:
        return ""
    if own[-1].at_ns - own[0].at_ns > len(own) * OFTEN_NS:
        return ""
    rows = {row.name: row for row in current.table.rows.values()} if current.table else {}
    calls = [sample.call for sample in silent if sample.call is not None]
    records = [*own, *(call for call in calls if call.vcpu_id == vcpu_id)]
    counts = Counter(call_name(rows.get(record.name), record) for record in records)
    return " and ".join(sorted(counts)) if len(counts) <= FEW else ""
