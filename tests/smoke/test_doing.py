"""What a plan or a test has the toolstack do, on tiny guests, which do nothing of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tinyguest import BLOCK, POWEROFF, SPIN, kernel, say, shutdown, wait_until
from xenemu.dom0.verbs import VERBS
from xenemu.errors import UsageError
from xenemu.outcome import End
from xenemu.smoke.guest import Guest, GuestFailed
from xenemu.smoke.plan import Boot, PlanError, load_plan, make_boots
from xenemu.smoke.session import Session
from xenemu.smoke.verdict import Verdict

LATER = wait_until(2_000_000_000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kernel"


@pytest.fixture
def session(path):
    """A function that makes a session of code, and deeds as (after, action)."""

    def make(code, *deeds, **keys):
        path.write_bytes(kernel(code))
        do = [{"after": after, "action": action} for after, action in deeds]
        (boot,) = make_boots({"kernel": str(path), "memory": "64M", "do": do, **keys})
        return Session(boot)

    return make


def reasons(session):
    return [(finding.verdict, finding.reason) for finding in session.run_plan()]


def test_deeds_come_in_their_order_each_after_what_it_waits_for(session):
    code = say(b"two\none\n") + LATER + say(b"two\n") + SPIN
    deeds = (("one", "pause"), ("", "unpause"), ("two", "destroy"))
    guest = session(code, *deeds, virtual_timeout=10)
    guest.run_plan()
    assert guest.outcome.reason == "destroyed by the toolstack"
    assert 2e9 < guest.machine.engine.now_ns < 3e9


def test_a_guest_that_ignores_a_request_fails_the_boot(session):
    guest = session(say(b"up\n") + LATER + SPIN, ("up", "shutdown within=1"))
    ((verdict, reason),) = reasons(guest)
    assert verdict is Verdict.UNMET
    assert reason.startswith("shutdown within=1: the guest has not acknowledged poweroff")
    assert guest.machine.engine.now_ns < 2e9


def test_a_refusal_fails_the_boot(session):
    ((verdict, reason),) = reasons(session(SPIN, ("", "vcpu 7 online")))
    assert verdict is Verdict.UNMET and reason.startswith("vcpu 7 online: there is no vcpu 7")


def test_a_deed_that_never_came_is_told(session):
    ((_, reason),) = reasons(session(shutdown(POWEROFF), ("login:", "pause")))
    assert "never seen: 'login:'" in reason


def test_a_guest_that_waits_for_nothing_is_asked_all_the_same(session):
    guest = session(say(b"up\n") + BLOCK + SPIN, ("up", "nmi"), ("", "destroy"))
    guest.run_plan()
    assert guest.outcome.end is End.STOPPED


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ('"shutdown"', "give a table with action"),
        ('{after = "x"}', "give a table with action"),
        ('{action = "fly"}', "there is no verb 'fly'"),
        ('{action = ""}', "there is no verb ''"),
        ('{action = "pause now"}', "'now' is one word too many: pause"),
        ('{action = "sysrq \\""}', "No closing quotation"),
        ('{action = "pause", before = "x"}', "before: unknown key"),
        ('{action = "pause", after = "("}', "missing )"),
        ('{action = "shutdown fly"}', "shutdown fly: how is 'fly', and not one of poweroff"),
        ('{action = "shutdown within=x"}', "within is 'x', which is no number of seconds"),
        ('{action = "memory"}', "memory: target is missing: memory TARGET"),
        ('{action = "memory 12Q"}', "target is '12Q', and not a number of KiB"),
        ('{action = "memory 0"}', "a guest needs memory"),
        ('{action = "sysrq help"}', "key is 'help', and not one character"),
        ('{action = "vcpu one online"}', "number is 'one', which is no number"),
        ('{action = "vcpu 1 up"}', "state is 'up', and not one of online, offline"),
        ('{action = "vcpu 0 offline"}', "vcpu 0 stays online"),
        ('{action = "nmi x"}', "vcpu is 'x', which is no number"),
        ('{action = "attach"}', "device is missing: attach DEVICE"),
        ('{action = "detach xvdb force=maybe"}', "force is 'maybe', and not one of yes, no"),
        ('{action = "resume old"}', "how is 'old', and not one of new, cancel"),
        ('{action = "xenstore write x"}', "value is missing: xenstore read|write"),
        ('{action = "xenstore sing"}', "op is 'sing', and not one of read, write"),
    ],
)
def test_what_is_no_deed_is_refused(tmp_path, do, words):
    (tmp_path / "kernel").touch()
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[[boot]]\nkernel = "kernel"\ndo = [{do}]\n')
    with pytest.raises(PlanError) as error:
        load_plan(plan)
    assert f"{plan}:3: do: " in str(error.value) and words in str(error.value)


def test_a_verb_names_its_fields_as_its_usage_does():
    for verb in VERBS.values():
        for name in verb.fields:
            choices = re.search(r"\w+\|", verb.usage)  # a word of some that are told
            assert name.upper() in verb.usage or f"{name}=" in verb.usage or choices, (verb, name)


def test_a_test_asks_and_is_answered(path):
    path.write_bytes(kernel(say(b"up\n") + LATER + shutdown(POWEROFF)))
    with Guest(Boot("guest", path, memory=64 << 20)) as guest:
        assert guest.status()["time_s"] == 0
        guest.expect("up")
        guest.xenstore.write("data/x", "1")
        assert guest.xenstore.read("data/x") == "1"
        assert guest.xenstore.ls("data") == {
            "/local/domain/1/data": "",
            "/local/domain/1/data/x": "1",
        }
        guest.xenstore.rm("data/x")
        guest.pause()
        assert guest.status()["state"] == "paused"
        guest.unpause()
        with pytest.raises(GuestFailed, match=r"has not acknowledged suspend .* within 0\.5 s"):
            guest.shutdown("suspend", within=0.5)
        with pytest.raises(UsageError, match=r"^nmi: there is no vcpu 5"):
            guest.nmi(5)
        with pytest.raises(UsageError, match="there is no verb 'fly'"):
            guest.ask("fly")
        with pytest.raises(GuestFailed, match="sysrq: the guest has ended before it did this"):
            guest.sysrq("h")
        assert guest.finish().findings == []
        with pytest.raises(GuestFailed, match="the guest has ended"):
            guest.reboot()


def test_an_answer_to_the_origin_is_none_of_a_copy(session):
    """Here one session goes on as a boot that starts from its own boot."""
    code = say(b"up\n") + wait_until(20_000_000) + say(b"two\n") + LATER + SPIN
    guest = session(code, ("up", "shutdown within=1"), snapshot=0.01, virtual_timeout=3)
    assert guest.run_to_snapshot()
    deed = make_boots(
        {"kernel": str(guest.boot.kernel), "do": [{"after": "two", "action": "status"}]}
    )
    guest.turn_to(replace(guest.boot, do=deed[0].do, origin=guest.boot))
    ((verdict, _),) = reasons(guest)
    assert verdict is Verdict.TIMEOUT, "and not the origin's deed, which nobody has done"


def test_nothing_is_done_between_a_snapshot_and_the_copies(session):
    guest = session(say(b"up\n") + LATER + SPIN, ("up", "destroy"), snapshot="up")
    assert guest.run_to_snapshot()
    guest.run_plan()
    assert guest.outcome.reason == "destroyed by the toolstack"
