"""The person's side of the guest's console: this process's standard input and output.

What the guest prints goes to standard output, and to the log, byte for byte. Input comes from a
terminal, which is then in raw mode, or from a pipe or a file. This module never changes how a
descriptor blocks, because other processes may share the descriptor.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Self

from xenemu.cli.afterinput import AfterInput
from xenemu.cli.escape import Escape
from xenemu.cli.expect import Expectations
from xenemu.cli.patience import Patience
from xenemu.cli.rawmode import RawMode, is_foreground
from xenemu.cli.searching import search
from xenemu.cli.signals import handled
from xenemu.cli.silence import Silence
from xenemu.cli.status import Status
from xenemu.errors import OutputError
from xenemu.outcome import End, Outcome
from xenemu.outputs import Output

if TYPE_CHECKING:
    from xenemu.cli.keeping import Keeping

CTRL_C: Final = b"\x03"
MAX_TYPED_AHEAD: Final = 64 << 10  # bytes that the guest has yet to take
MAX_WAIT_S: Final = 1_000_000  # a guest may set its timer to any time


class HostTerminal:
    """Implements `xenemu.machine.Terminal`; enter it as a context around the run.

    * `callers` are others that may end a wait for input, such as a debugger.
    * `after` says what is typed once input has ended.
    * `silence` says what to do if nothing is ever printed.
    * `patience` says when to give up by the guest's time, `keeping` when to keep it in a file.
    * `escape` takes out of what a person types what is for xenemu.
    * `stdin` and `stdout` are descriptors, or None if there is no such stream.
    * `signum` is the signal that ended the run, or 0. SIGPIPE means that nobody reads the console
      any more.
    """

    def __init__(
        self,
        stdin: int | None,
        stdout: int | None,
        expectations: Expectations,
        status: Status,
        log: Output | None = None,
        after: AfterInput | None = None,
        silence: Silence | None = None,
        escape: Escape | None = None,
        patience: Patience | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self.signum = 0
        self.interactive = stdin is not None and is_foreground(stdin)
        if stdin is not None and os.isatty(stdin) and not self.interactive:
            stdin = None
        self._stdin = stdin
        self._stdout = Output(stdout, "standard output") if stdout is not None else None
        self._expectations = expectations
        self._status = status
        self._log = log
        self._after = after
        self._silence = silence
        self._patience = patience
        self._keeping = keeping
        self.escape = escape or Escape()
        self._typed = b""  # while nobody read it
        self.callers: Callable[[], list[int]] = list
        self._handled = handled(self._on_signal)
        self._waiting = False
        self._raw: RawMode | None = None

    # The person's terminal, and signals.

    def __enter__(self) -> Self:
        self._handled.__enter__()
        if self.interactive:
            assert self._stdin is not None
            self._raw = RawMode(self._stdin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cook()
        self._handled.__exit__(kind, error, trace)

    def _cook(self) -> None:
        if self._raw is not None:
            self._raw.leave()
            self._raw = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; the run ends at its next look, or now if this process waits.

        To raise an exception each time would not do: Python swallows what is raised while the
        engine calls in. A search ends at once, and takes the exception itself.
        """
        self.signum = signum
        search.end()
        if self._waiting:
            self._waiting = False
            raise InterruptedError

    def _wait(self, reading: list[int], writing: list[int], seconds: float | None) -> list[int]:
        """Wait for descriptors; which are ready: none if the time passed, or a signal came."""
        try:
            self._waiting = True
            if self.signum:
                self._waiting = False
                return []
            readable, writable, _ = select.select(reading, writing, [], seconds)
            self._waiting = False
        except InterruptedError:
            return []
        return readable + writable

    def wait(
        self,
        descriptors: list[int],
        phase: str,
        seconds: float | None = None,
        alone: bool = False,
    ) -> bool:
        """Wait for what is not the console's, or `seconds`; False if the person or a signal ends.

        What is typed ends the wait, too, and is kept for the guest; but `alone`, where nobody but
        the person is there, Ctrl-C is SIGINT.
        """
        self._status.phase(phase)
        typing = [self._stdin] if self.interactive and self._stdin is not None else []
        if not (self.signum or self.escape.left):
            bounded = None if seconds is None else min(seconds, MAX_WAIT_S)
            if set(self._wait([*descriptors, *typing], [], bounded)) & set(typing):
                typed = self._read_input(select.PIPE_BUF)
                self._typed += typed
                if alone and CTRL_C in typed:
                    self.signum = signal.SIGINT
        return not (self.signum or self.escape.left)

    # Terminal.

    @property
    def exhausted(self) -> bool:
        """No more input can come, unless the guest prints what it waits for."""
        script = self._expectations.script
        return self._stdin is None and not self._typed and not (script and script.comes_by_itself)

    @property
    def due_ns(self) -> int | None:
        """When a script is to type something, when to give up, when to keep it: the first."""
        those = (self._expectations.script, self._patience, self._keeping)
        found = (each.due_ns for each in those if each)
        return min((due_ns for due_ns in found if due_ns is not None), default=None)

    def check(self) -> Outcome | None:
        """Why to stop: a signal, Ctrl-], or expectations: all met, or one that takes for ever."""
        self._status.progress("running")
        if self._silence:
            self._silence.look()
        if self._after and self.exhausted:
            script = self._expectations.script
            self._typed += self._after.look(script.unmet[:1] if script else ())
        if search.given_up:
            words = f"the regular expression {search.given_up!r} takes too long to look for"
            return Outcome(End.UNMET, words, "write it so that it can match in one way only")
        if self.signum:
            return Outcome(End.STOPPED, f"stopped by {signal.Signals(self.signum).name}")
        if self.escape.left:
            return Outcome(End.STOPPED, "left by Ctrl-]")
        if self._expectations.met:
            return Outcome(End.EXPECTED, "every expectation is met")
        return self._patience.check() if self._patience else None

    def leaves(self) -> bool:
        """Whether a signal came, or Ctrl-]. What else is typed meanwhile is kept for the guest."""
        listens = self.interactive and len(self._typed) < MAX_TYPED_AHEAD
        if listens and self._stdin is not None and self._wait([self._stdin], [], 0):
            self._typed += self._read_input(select.PIPE_BUF)
        return bool(self.signum or self.escape.left)

    def write(self, data: bytes) -> None:
        """Show what the guest printed, log it, and look for what is expected."""
        self._status.make_room()
        for output in (self._log, self._stdout):
            if output is not None:
                self.put(output, data)
        self._status.printed(data)
        if self._silence:
            self._silence.spoke()
        if self._after:
            self._after.spoke()
        if self._patience:
            self._patience.spoke()
        self._expectations.feed(data)

    def put(self, output: Output, data: bytes) -> None:
        """Write all of it; OutputError if that cannot be.

        A reader may be slow: then a signal ends the run, and the rest is dropped. One that has
        gone ends it, too.
        """
        left = memoryview(data)
        try:
            while left and (output.is_file or not self.signum):
                # A pipe with room takes this much at once, so that nothing blocks but `_wait`.
                if output.is_file or self._wait([], [output.descriptor], None):
                    left = left[os.write(output.descriptor, left[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            self.signum = signal.SIGPIPE
        except OSError as error:
            if not self.signum:  # which may be that the terminal was hung up
                raise OutputError(f"{output.name}: {error.strerror}") from None

    def read(
        self,
        room: int,
        wait_ns: int | None,
        reading: Sequence[int] = (),
        writing: Sequence[int] = (),
    ) -> bytes:
        """Up to `room` bytes of input; waits for them as `xenemu.machine.Terminal` says."""
        script = self._expectations.script
        if script and (scripted := script.take()):
            self._typed += scripted
            if self._after:
                self._after.typed(scripted)
        if self._typed and room:
            data, self._typed = self._typed[:room], self._typed[room:]
            return data
        typing = [self._stdin] if self._stdin is not None and room else []
        if not typing and (wait_ns == 0 or (wait_ns is None and not reading)):
            return b""  # nothing can come
        if wait_ns is None:
            self._status.phase(
                "waiting for packets or requests" if reading else "waiting for input"
            )
        seconds = None if wait_ns is None else min(wait_ns / 1e9, MAX_WAIT_S)
        callers = self.callers() if seconds != 0 else []
        ready = self._wait([*typing, *callers, *reading], [*writing], seconds)
        return self._read_input(room) if set(ready) & set(typing) else b""

    def _read_input(self, room: int) -> bytes:
        """Up to `room` bytes of input that is there; notes its end, and what is for xenemu."""
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, room)
        except OSError:  # the terminal was hung up
            data = b""
        if not data:
            self._close_input()
        elif self._after:
            self._after.typed(data)
        if self.interactive:
            self._status.typed()
            data = self.escape.take(data)
        return data

    def _close_input(self) -> None:
        self._cook()
        self._stdin = None
        self.interactive = False
