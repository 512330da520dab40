"""What the end of a run means, by what its console and the kernel's memory say."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from xenemu.cli.expect import Expectations
from xenemu.outcome import End, Outcome
from xenemu.smoke.verdict import Verdict, advice, crash
from xenemu.smoke.witness import Witness

# Whatever the kernel says.
ENDED_BY_OTHERS: Final = {End.EXPECTED, End.REFUSED, End.DIVERGED, End.INCONSISTENT}


def judge(outcome: Outcome, expectations: Expectations, witness: Witness) -> Outcome:
    """What an end means: a kernel that panicked has crashed, however that ended the domain.

    Unmet expectations count unless something graver happened.
    """
    outcome = _ask_the_kernel(outcome, expectations, witness)
    if outcome.end in (End.TIMEOUT, End.STOPPED) and not outcome.held:
        outcome = replace(outcome, reason=outcome.reason + witness.pattern)
    if not expectations.unmet:
        return outcome
    reason = f"{outcome.reason}; never seen: " + ", ".join(map(repr, expectations.unmet))
    end = End.UNMET if outcome.exit_code == 0 else outcome.end
    return replace(outcome, end=end, reason=reason)


def _ask_the_kernel(outcome: Outcome, expectations: Expectations, witness: Witness) -> Outcome:
    headlines = expectations.headlines.lines
    if outcome.end in ENDED_BY_OTHERS or not witness.doubts(outcome, headlines):
        return outcome
    facts = witness.facts(outcome, headlines)
    died, hint = crash(facts), advice(facts)
    if died is None or died.verdict is Verdict.CRASH:  # which has no words
        silent = not expectations.tail.strip()
        return replace(outcome, advice=outcome.advice or (hint if silent else ""))
    if outcome.end is End.GUEST_CRASH:
        reason = f"{outcome.reason}: {died.reason}"
        return replace(outcome, reason=reason, advice=outcome.advice or hint)
    if outcome.end is End.STOPPED:
        return replace(outcome, reason=f"{outcome.reason}; before that, {died.reason}")
    return Outcome(End.GUEST_CRASH, f"{died.reason}; {outcome.reason}", hint)


def to_do_in_silence(witness: Witness) -> str:
    """What to do, if a Linux runs and its console shows nothing; else nothing."""
    return advice(witness.facts(Outcome(End.STOPPED, ""), ()))
