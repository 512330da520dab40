"""What is asked of a guest that has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import elfwriter
from fakes import make_pv_current
from xenemu import image
from xenemu.abi.sched import SHUTDOWN_crash
from xenemu.abi.vcpu import VCPUOP_down, VCPUOP_up
from xenemu.hv.calls import CallRecord
from xenemu.outcome import End, Outcome
from xenemu.smoke.witness import Witness


@pytest.fixture
def machine():
    current = make_pv_current()
    return SimpleNamespace(current=current, domain=current.domain)


@pytest.fixture
def witness(machine, tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(elfwriter.kernel())
    return Witness(machine, lambda: image.load(path))


@pytest.mark.parametrize(
    ("end", "headlines", "why", "doubts"),
    [
        (End.POWEROFF, ["Linux version 6.1", ""], "", False),
        (End.POWEROFF, ["Linux version 6.1", ""], "it halted", False),
        (End.POWEROFF, [""], "", False),
        (End.POWEROFF, [""], "it halted", True),  # before its console worked
        (End.POWEROFF, ["Kernel panic"], "", True),
        (End.POWEROFF, ["PANIC: early exception"], "", True),
        (End.REBOOT, [""], "", True),  # as after panic=1
        (End.TIMEOUT, ["Linux version 6.1", ""], "", True),
    ],
)
def test_only_a_good_end_is_believed(witness, machine, end, headlines, why, doubts):
    machine.domain.shutdown_why = why
    assert witness.doubts(Outcome(end, ""), headlines) is doubts


@pytest.mark.parametrize(
    ("end", "name", "args", "halted"),
    [
        (End.POWEROFF, "vcpu_op", (VCPUOP_down, 0, 0), True),
        (End.POWEROFF, "vcpu_op", (VCPUOP_up, 0, 0), False),
        (End.POWEROFF, "hypercall 99", (), False),
        (End.STOPPED, "vcpu_op", (VCPUOP_down, 0, 0), False),
    ],
)
def test_a_pv_guest_that_went_down_has_halted(witness, machine, end, name, args, halted):
    machine.domain.calls.append(CallRecord(0, 0, 0, name, args))
    assert witness.facts(Outcome(end, ""), []).halted is halted


def test_a_shutdown_for_a_crash_is_a_crash_whoever_ended_the_run(witness, machine):
    machine.domain.shutdown_code = SHUTDOWN_crash
    assert witness.facts(Outcome(End.STOPPED, ""), []).ended is End.GUEST_CRASH


def test_a_kernel_without_names_does_not_tell(witness):
    facts = witness.facts(Outcome(End.TIMEOUT, "it hangs"), ["a line"])
    assert (facts.panicked, facts.taint, facts.log, facts.console) == (None, None, [], ["a line"])
