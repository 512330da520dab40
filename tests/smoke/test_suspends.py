"""smoke/suspends: a boot whose guest suspends itself, and what its plan says of that."""

from __future__ import annotations

import pytest

from guests.build import ENVIRONMENTS, build, guests
from xenemu.outcome import End
from xenemu.smoke import suspends
from xenemu.smoke.plan import Boot
from xenemu.smoke.session import Session
from xenemu.smoke.verdict import Verdict


@pytest.fixture
def boot(tmp_path):
    """A function that runs the guest of guests/suspend as a plan would: verdicts, session."""

    def boot(kind, **keys):
        kernel = build(guests()["suspend"], ENVIRONMENTS[kind], tmp_path / kind)
        session = Session(Boot("guest", kernel, kind[:-2], memory=4 << 20, **keys))
        return [finding.verdict for finding in session.run_plan()], session

    return boot


def test_without_a_word_the_guest_ends(boot):
    verdicts, session = boot("pv64")
    assert verdicts == [] and session.outcome.end is End.SUSPEND


def test_a_guest_goes_on(boot):
    for kind in ("pv32", "pvh64"):
        for on_suspend, result in (("resume", 0), ("cancel", 1)):
            verdicts, session = boot(kind, on_suspend=on_suspend, exit=("poweroff",))
            assert verdicts == [], session.transcript.text
            returned = f"the hypercall returned {result}"
            assert session.transcript.text[1:] == [returned] * 2 + ["Test result: SUCCESS"]


def test_a_guest_that_cannot_be_resumed_fails_its_boot(boot, monkeypatch):
    def renew(machine, away_ns):
        raise suspends.StreamError("it is a stone")

    monkeypatch.setattr(suspends.life, "renew", renew)
    verdicts, session = boot("pv64", on_suspend="resume", exit=("poweroff",))
    assert verdicts[0] is Verdict.UNMET
    assert "cannot be resumed: it is a stone" in session.findings[0].reason
    assert session.machine.domain.domid == 1
