"""A debugger on the wire: holds the guest while gdb asks, and lets it run while gdb waits.

There is no thread. The machine calls in at each slice of the guest's time. That is when a Ctrl-C or
a new connection is seen. While the guest is held, this waits for gdb.

A gdb that vanishes without a word leaves the guest held, and another gdb can go on from there. Only
`detach` lets the guest run on. If gdb is at a pipe, the run ends with the pipe, even after
`detach`.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from xenemu.gdb.channel import Channel, Listener
from xenemu.gdb.history import History, Place
from xenemu.gdb.packets import Packets
from xenemu.gdb.rsp import Decoder, Packet, Signal, encode, hex_text
from xenemu.gdb.stops import (
    CONTINUE,
    CONTINUE_BACK,
    SIGABRT,
    SIGINT,
    SIGTRAP,
    Action,
    Back,
    Go,
    Stop,
    stop_of,
)
from xenemu.gdb.target import Target
from xenemu.gdb.travel import BEGIN, Journey, Simple, go_to, run_back, step_back
from xenemu.gdb.traveller import Traveller
from xenemu.hv.debug import Cause, Halt, RunEnded
from xenemu.machine import Limits
from xenemu.outcome import End, Outcome
from xenemu.recording.rewinding import Rewindable
from xenemu.records import dataclass
from xenemu.x86.flags import vector_name

POLLED_STEPS: Final = 256  # of a range, between two looks for Ctrl-C
ENDS_TO_LOOK_AT: Final = {End.GUEST_CRASH, End.WATCHDOG, End.REFUSED, End.TRIPLE_FAULT}
BUSY: Final = b"E.another gdb is attached; detach it first"


class Person(Protocol):
    """The terminal of whoever started this process."""

    def wait(self, descriptors: list[int], phase: str, seconds: float | None, alone: bool) -> bool:
        """Wait for one of the descriptors, or something else, or so long; False if a person, or a
        signal, ends the run.

        `alone`: no gdb is there, so that Ctrl-C is meant for xenemu.
        """

    def check(self) -> Outcome | None:
        """Why the run ends."""


@dataclass
class Server:
    """Implements `xenemu.hv.debug.Debugger` for one machine.

    `tell` takes a line for the person at the terminal. When the guest has ended, `judge` adds what
    the console says of that. The guest is held from its first instruction on, until a gdb lets it
    go. `obstacle` says why it cannot go back, if it cannot. `outside` is for `Machine.run`.
    """

    outside = Rewindable

    target: Target
    listener: Listener
    person: Person
    limits: Limits
    tell: Callable[[str], None]
    judge: Callable[[Outcome], Outcome] = lambda outcome: outcome
    obstacle: str = ""

    def __post_init__(self) -> None:
        self._channel: Channel | None = None
        self._decoder = Decoder()
        self.history = History(self.target.machine, self.obstacle)
        self._packets = Packets(self.target, self.history, self._show, self.tell)
        self._going: Go | None = None  # how the guest goes on; None: it is held
        self._stop = Stop(SIGTRAP)
        self._steps = 0
        self._steps_back = 0  # one after the other
        self._told_who_waits = False
        self._stepped_from: dict[int, int] = {}  # where the next step of a thread will begin
        self._last_sent = b""
        self._kept = False  # gdb has yet to hear of the stop
        self._awaited = False  # gdb waits for a stop reply
        self._traveller = Traveller(self.target, self.history, self._arrive)

    # What the machine calls.

    def run(self, deadline_ns: int) -> None:
        """Run the current vcpu to the end of its slice, holding it where gdb says."""
        debug, target = self.target.machine.debug, self.target
        self._stop_at_the_door()
        debug.begin(deadline_ns)
        if self._going is None:
            self._hold()
        while not debug.over and (action := self._action):
            if self._traveller.is_away:
                self._travel()
                continue
            self._arm()
            if action.stepping:
                halt = debug.step()
                self._steps += 1
                done = action.is_done(target.pc)
            else:
                halt, done = debug.run(), False
            self._settle(halt, done)

    def look(self) -> None:
        """Hold the guest if gdb pressed Ctrl-C, or a new one came."""
        if self._going is None:
            self._hold()
        else:
            if self.calls():
                self._listen(held=False)
            self._give_up_on_vcpus_that_are_down()
            self._say_who_waits()
            if self._going is None:
                self._hold()
        self._remember()

    def calls(self) -> bool:
        """Whether a gdb has something to say."""
        return bool(select.select(self.descriptors(), [], [], 0)[0])

    def idle(self) -> bool:
        """Wait for gdb, where the guest waits for nothing; False if there is no gdb."""
        if self._channel is None:
            return False
        self._wait("the guest is idle; waiting for gdb", self.limits.left_s())
        return True

    def ended(self, outcome: Outcome) -> None:
        """Tell gdb how the guest ended; one that crashed can be looked at first."""
        if self._traveller.is_away:
            self._traveller.go_on(Simple.ENDED)
        outcome = self.judge(outcome)
        if self._channel is not None and outcome.end in ENDS_TO_LOOK_AT:
            self._console(f"xenemu: {outcome.end.value}: {outcome.reason}\n")
            if outcome.advice:
                self._console(f"xenemu: what to do: {outcome.advice}\n")
            self._console(
                "xenemu: it is still there to look at; continue, kill or detach ends it\n"
            )
            self._halt(Stop(SIGABRT))
            with suppress(RunEnded):
                self._hold()
        if self._channel is not None:
            self._send(b"W%02x" % outcome.exit_code)
            self._hang_up()

    def close(self) -> None:
        """The run is over: end what was begun for it."""
        self.history.close()

    # Going on, and stopping.

    @property
    def _action(self) -> Action | None:
        """What the current thread does; None: it is held."""
        return self._going.action(self.target.current_thread) if self._going else None

    @property
    def _steps_here(self) -> bool:
        action = self._action
        return action is not None and action.stepping

    def _start(self, going: Go) -> None:
        """Let the threads go on that have an action; the machine must let no other vcpu run."""
        target = self.target
        actions = {thread: going.action(thread) for thread in target.threads}
        goes = [thread for thread, action in actions.items() if action is not None]
        held = len(goes) < len(actions)
        target.machine.let_run = frozenset(thread - 1 for thread in goes) if held else None
        steps = [thread for thread, action in actions.items() if action and action.stepping]
        self._stepped_from = {thread: target.pc_of(thread) for thread in steps}
        self._going, self._steps, self._awaited = going, 0, not going.detached
        self._steps_back = 0
        self._told_who_waits = False
        self._give_up_on_vcpus_that_are_down()

    def _give_up_on_vcpus_that_are_down(self) -> None:
        """Stop where only vcpus may go on that are down, and nobody is there to bring them up."""
        machine = self.target.machine
        if self._going is None or machine.let_run is None:
            return
        vcpus = machine.domain.vcpus
        if not any(vcpus[vcpu_id].online for vcpu_id in machine.let_run):
            who = _names(machine.let_run)
            self._console(f"xenemu: {who} cannot go on alone: down until another brings it up\n")
            self._halt(Stop(SIGTRAP))

    def _say_who_waits(self) -> None:
        """Say, once, that the vcpus wait that go on, perhaps for one that does not."""
        machine = self.target.machine
        if self._going is None or machine.let_run is None or self._told_who_waits:
            return
        vcpus = machine.domain.vcpus
        waits = not any(vcpus[vcpu_id].runnable for vcpu_id in machine.let_run)
        if waits and machine.next_wake_ns() is None:
            self._told_who_waits = True
            who = _names(machine.let_run)
            self._console(
                f"xenemu: {who} may wait for a vcpu that gdb holds; Ctrl-C, and then"
                " set scheduler-locking off\n"
            )

    def _stop_at_the_door(self) -> None:
        """A step that begins with an upcall to the guest ends at its first instruction.

        So does one of a vcpu that another has meanwhile brought up afresh.
        """
        if self._traveller.is_away:
            self._traveller.begin_slice()
            return
        before = self._stepped_from.pop(self.target.current_thread, None)
        has_moved = before is not None and before != self.target.pc
        self._settle_requests()
        if has_moved and self._steps_here:
            self._halt(Stop(SIGTRAP))

    def _arm(self) -> None:
        """Set what gdb asks for, as late as possible: gdb takes everything back at each stop."""
        debug = self.target.machine.debug
        if not self._steps_here:
            debug.set_breakpoints(self._packets.breakpoints)
        debug.set_watchpoints(self._packets.watches)

    def _settle(self, halt: Halt | None, done: bool) -> None:
        """After a run or a step: hold the guest if that is wanted."""
        if halt and halt.cause is Cause.FAULT:
            self._packets.requested = f"{vector_name(halt.vector)}, which the guest has yet to see"
        if halt:
            self._console_request()
            self._halt(stop_of(halt, self._packets.hardware, self.target.pc))
        elif self._settle_requests():
            pass
        elif done:
            self._halt(Stop(SIGTRAP))
        elif self._steps_here:
            self._stepped_from[self.target.current_thread] = self.target.pc
            if self._steps % POLLED_STEPS == 0 and self.calls():
                self._listen(held=False)
        elif not self.target.machine.debug.over and self.calls():
            self._listen(held=False)
        if self._going is None:
            self._hold()

    def _settle_requests(self) -> bool:
        """Hold the guest for what was asked for by a monitor command; whether anything was."""
        asked = self._console_request()
        if asked:
            self._halt(Stop(SIGTRAP))
        return asked

    def _console_request(self) -> bool:
        sentence, self._packets.requested = self._packets.requested, ""
        if sentence:
            self._console(f"xenemu: {sentence}\n")
        return bool(sentence)

    def _halt(self, stop: Stop) -> None:
        """Hold the guest, and say why to a gdb that waits for it."""
        self._going, self._stop = None, stop
        self._traveller.stay()
        self._packets.stopped()
        if self._awaited:
            self._awaited = False
            redescription = self._packets.redescribes()
            self._kept = redescription is not None  # gdb goes on by itself, and hears the rest
            self._send(redescription or self._packets.stop_reply(stop))

    def _hold(self) -> None:
        """Answer gdb until it lets the guest go. Its time stands still; that of limits, for gdb."""
        limits = self.limits
        while self._going is None:
            before, attached = limits.clock(), self._channel is not None
            if attached:
                self._wait("held by gdb", None)
            else:
                self._wait("waiting for gdb", limits.left_s())
                if limits.expired():
                    reason = f"no gdb let the guest go within {limits.timeout_s:g} s"
                    raise RunEnded(Outcome(End.TIMEOUT, reason))
            self._listen(held=True)
            if attached:
                limits.started += limits.clock() - before

    # Going back.

    def _remember(self) -> None:
        """Between two slices: see to it that there is a checkpoint to go back to."""
        machine, traveller = self.target.machine, self._traveller
        if machine.let_run is not None:
            machine.disturbed += 1  # by turns that would not come so again
        elif self._going is not None and not self._going.detached:
            goes_on = traveller.is_away and self._steps_back > 1  # and so it will
            self.history.note(traveller.goal if goes_on else None)

    def _set_out(self, back: Back) -> None:
        """Go back; `WentBack` unless there is nowhere to go."""
        machine, history, packets = self.target.machine, self.history, self._packets
        history.settle()
        origin = Place.of(machine)
        self._steps_back = self._steps_back + 1 if back.stepping else 0
        if back.stepping:
            self._travel_by(lambda: step_back(machine, history, origin))
        elif (goal := packets.places.take_goal()) is not None:
            self._travel_by(lambda: go_to(machine, history, goal))
        else:
            self._travel_by(lambda: run_back(machine, history, origin, packets.hardware))

    def _travel_by(self, plan: Callable[[], Journey]) -> None:
        machine = self.target.machine
        machine.let_run = None
        machine.debug.catch_faults(())
        self._going, self._awaited = CONTINUE, True
        self._traveller.set_out(plan)

    def _travel(self) -> None:
        """Go on with the journey, as far as the slice goes."""
        self._traveller.run(self._packets.breakpoints, self._packets.watches)
        self._packets.requested = ""
        if self._going is None:
            self._hold()

    def _arrive(self, stop: Stop | None) -> None:
        """A journey is at its end."""
        self._packets.catch_again()
        if stop is BEGIN:
            self._console(f"xenemu: {self.history.limit}\n")
        if stop is not None:
            self._halt(stop)

    # The wire.

    def descriptors(self) -> list[int]:
        """What to wait for, to hear from a gdb."""
        found = [self.listener.fileno(), self._channel.fileno() if self._channel else None]
        return [descriptor for descriptor in found if descriptor is not None]

    def _wait(self, phase: str, seconds: float | None) -> None:
        alone = self._channel is None
        if not self.person.wait(self.descriptors(), phase, seconds, alone):
            ended = self.person.check()
            raise RunEnded(ended or Outcome(End.STOPPED, "left while gdb held the guest"))

    def _listen(self, held: bool) -> None:
        """Take what is there: connections, packets, Ctrl-C."""
        readable = select.select(self.descriptors(), [], [], 0)[0]
        called = self.listener.fileno() in readable
        while self._channel is not None and self._channel.fileno() in readable:
            self._receive(held)
            # The caller may be the same gdb again: the end of its old connection is still unread.
            if not called:
                break
            readable = select.select(self.descriptors(), [], [], 0)[0]
        if called:
            self._accept()

    def _accept(self) -> None:
        channel = self.listener.accept()
        if self.listener.ended:
            raise RunEnded(Outcome(End.STOPPED, "gdb went away"))
        if channel is None:
            return
        if self._channel is not None:
            self.tell("a second gdb was turned away: one is attached")
            channel.send(b"+" + encode(BUSY))
            channel.close()
            return
        self._channel, self._decoder, self._awaited = channel, Decoder(), False
        self._packets.reset()
        self._kept = False
        if self._going is not None:
            self._halt(Stop(SIGTRAP))
        if self.target.misread:
            bits = self.target.code_bits
            self.tell(
                f"the CPU runs {bits}-bit code, which gdb shows rightly by: monitor arch auto"
            )
        if system := self.target.os_abi:
            self.tell(
                f"the kernel's file is {system}'s: a gdb without a handler for that OS ABI must be"
                " started without the file, or with -iex 'set osabi none' before it"
            )

    def _receive(self, held: bool) -> None:
        assert self._channel is not None
        data = self._channel.receive()
        if not data:
            self._lose("gdb went away without detaching")
        last: Packet | Signal | None = None
        for event in self._decoder.feed(data):
            again, last = self._packets.acknowledged and event == last, event
            if isinstance(event, Packet):
                self._acknowledge(b"+")
                if not again:  # gdb repeats what is not acknowledged soon, while a kernel loads
                    self._packet(event.payload, held)
            elif event is Signal.INTERRUPT:
                if self._going is not None:
                    self._halt(Stop(SIGINT))
            elif event is Signal.TOO_LONG:
                self._acknowledge(b"+")
                self._send(b"E.a packet of more than PacketSize bytes was dropped")
            elif event is Signal.DAMAGED:
                self._acknowledge(b"-")
            elif event is Signal.NACK and self._channel:
                self._channel.send(self._last_sent)

    def _packet(self, payload: bytes, held: bool) -> None:
        if not held or self._going is not None:
            self._send(b"E.the guest is running")
            return
        answer = self._packets.handle(payload, self._stop)
        if isinstance(answer, Go) and self._kept and not answer.detached:
            self._kept = False
            self._send(self._packets.stop_reply(self._stop))
        elif isinstance(answer, Go) and answer.is_free and self._packets.places.is_leaving:
            self._set_out(CONTINUE_BACK)
        elif isinstance(answer, Go):
            self._start(answer)
            if answer.detached:
                self.history.clear()
                self._send(b"OK")
                self._hang_up()
        elif isinstance(answer, Back):
            self._set_out(answer)
        elif answer is None:
            if payload != b"k":  # which wants no answer
                self._send(b"OK")
            self._hang_up()
            raise RunEnded(Outcome(End.STOPPED, "killed by gdb"))
        else:
            self._send(answer)
            self._packets.answered(payload)

    def _console(self, text: str) -> None:
        """Show the person at gdb a text; or at the terminal, if there is no gdb."""
        if self._channel is None:
            self.tell(text.removeprefix("xenemu: ").rstrip("\n"))
        else:
            self._send(b"O" + hex_text(text))

    def _show(self, text: str) -> None:
        """Show what a monitor command shows, but for what the guest does again on the way back."""
        if not self._traveller.is_away:
            self._console(text)

    def _acknowledge(self, sign: bytes) -> None:
        if self._channel is not None and self._packets.acknowledged:
            self._channel.send(sign)

    def _send(self, payload: bytes) -> None:
        if self._channel is None:
            return
        self._last_sent = encode(payload)
        if not self._channel.send(self._last_sent):
            self._lose("gdb reads no more")

    def _lose(self, how: str) -> None:
        """Hold the guest for another gdb, or where none can come, for the end of the pipe."""
        self._hang_up()
        self._going = None
        if not self.listener.takes_stdio:
            self.tell(f"{how}; the guest is held for another")

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._packets.reset()


def _names(vcpu_ids: frozenset[int]) -> str:
    return " and ".join(f"vcpu {vcpu_id}" for vcpu_id in sorted(vcpu_ids))
