"""What is known of a guest that has ended: `run` and `smoke` judge by the same facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xenemu.abi.sched import SHUTDOWN_crash
from xenemu.abi.vcpu import VCPUOP_down
from xenemu.bsd import Bsd
from xenemu.image import Image
from xenemu.kaslr import as_mapped
from xenemu.linux import Linux
from xenemu.machine import Machine
from xenemu.outcome import End, Outcome
from xenemu.peek import Code, Pages, kernel_tables
from xenemu.smoke.verdict import Facts


class Witness:
    """Asks the kernel's own memory, whichever kernel it is. Leaves no trace there."""

    def __init__(self, machine: Machine, load: Callable[[], Image]) -> None:
        """`load` gives the kernel's image, when it is first needed."""
        self._machine = machine
        self._load = load

    def _kernels(self) -> tuple[Linux, Bsd]:
        current = self._machine.current
        image = as_mapped(current, self._load())
        read = Pages(current, kernel_tables(current, image))
        return Linux(current, image, read), Bsd(image, read)

    @property
    def panicked(self) -> bool | None:
        """Whether the kernel has panicked, as far as its memory tells."""
        linux, bsd = self._kernels()
        return linux.panicked if bsd.panicked is None else bsd.panicked

    @property
    def pattern(self) -> str:
        """What the guest did in the end, if that is clear, to be put after a sentence."""
        current = self._machine.current
        code = Code(as_mapped(current, self._load()), current)
        found = self._machine.samples.pattern(current, code)
        return f", {found}" if found else ""

    def doubts(self, outcome: Outcome, headlines: Sequence[str]) -> bool:
        """Whether to ask for `facts`; after a good end that never goes with a panic, nobody need.

        It takes a quarter of a second to read a kernel's names. Linux powers a PVH domain off by
        halting. It also halts when it meets an exception too early for its console to work.
        """
        if outcome.end not in (End.POWEROFF, End.SUSPEND):
            return True
        if any("panic" in line.lower() for line in headlines):
            return True
        return bool(self._machine.domain.shutdown_why) and not any(headlines)

    def facts(self, outcome: Outcome, console: Sequence[str], **watched: Any) -> Facts:
        """The facts of a run that ended so; `watched` are those that only its watcher knows."""
        domain = self._machine.domain
        linux, bsd = self._kernels()
        last = domain.calls[-1] if domain.calls else None
        went_down = last and (last.name, last.args[:1]) == ("vcpu_op", (VCPUOP_down,))
        stands_still = outcome.end is End.IDLE or bool(domain.shutdown_why)
        crashed = domain.shutdown_code == SHUTDOWN_crash
        return Facts(
            ended=End.GUEST_CRASH if crashed else outcome.end,
            reason=outcome.reason,
            panicked=self.panicked,
            panic_message=bsd.panic_message,
            died_early=stands_still and linux.died_early,
            halted=outcome.end is End.POWEROFF and bool(went_down),
            taint=linux.taint,
            command_line=linux.command_line,
            console=console,
            log=linux.log(),
            **watched,
        )
