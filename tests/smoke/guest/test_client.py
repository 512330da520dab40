"""A guest as a program has it: tiny guests, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import xenemu
import xenemu.smoke.guest
from tinyguest import BLOCK, CRASH, POWEROFF, SPIN, kernel, say, shutdown, wait_until
from xenemu.smoke.guest import close_all
from xenemu.smoke.guest.messages import ERRORS, Problem, problem, raised
from xenemu.smoke.plan import PlanError
from xenemu.smoke.plan_text import Place

ROOT = Path(__file__).parents[3]
LATER = say(b"one\n") + wait_until(20_000_000) + say(b"two\n") + shutdown(POWEROFF)


@pytest.fixture(scope="module", autouse=True)
def _end():
    yield
    close_all()


@pytest.fixture
def boot(tmp_path):
    """A function that boots code, until the test is over."""
    guests = []

    def boot(code, **keys):
        path = tmp_path / "kernel"
        path.write_bytes(code if code.startswith((b"\x7fELF", b"#!")) else kernel(code))
        guests.append(xenemu.boot(path, **{"memory": "64M"} | keys))
        return guests[-1]

    yield boot
    for guest in guests:
        guest.close()


def test_all_that_is_offered_is_there_and_nothing_is_imported_before():
    assert sorted(xenemu.__all__) == xenemu.__all__
    assert set(xenemu.smoke.guest.__all__) - {"close_all"} == set(xenemu.__all__)
    assert set(xenemu.__all__) <= set(dir(xenemu))
    for name in xenemu.__all__:
        assert getattr(xenemu, name) is getattr(xenemu.smoke.guest, name)
    with pytest.raises(AttributeError, match="no attribute 'bot'"):
        xenemu.bot  # noqa: B018
    code = "import sys, xenemu; print([m for m in sys.modules if m.startswith('xenemu.')])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == b"[]\n"


def test_a_guest_is_a_context(boot):
    with boot(LATER) as guest:
        assert guest.expect("o(n)e").groups == ("n",)
        assert repr(guest) == "<xenemu.Guest 'kernel'>"
        process = Path(f"/proc/{guest._process.pid}")
        assert process.exists()
    assert guest.is_closed
    assert repr(guest) == "<xenemu.Guest 'kernel', closed>"
    assert not process.exists()
    with pytest.raises(RuntimeError, match=r"^the guest is closed$"):
        guest.run(1)


def test_it_runs_for_a_time_and_no_longer(boot):
    guest = boot(LATER)
    assert guest.virtual_ns == guest.instructions == 0
    assert guest.run(0.01)
    assert 10_000_000 <= guest.virtual_ns < 20_000_000
    assert (guest.output, guest.result.findings) == ("one\n", [])
    assert not guest.run(1)
    assert guest.output == "one\ntwo\n"
    assert not guest.run(1)
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(xenemu.UsageError, match="give seconds, above 0"):
            guest.run(wrong)


def test_a_run_does_not_mind_silence_and_neither_does_what_comes_after(boot):
    guest = boot(wait_until(3_000_000_000) + LATER, quiet_timeout=0.5)
    assert guest.run(2.8)
    assert guest.expect("two").text == "two"


def test_what_waits_for_ever_waits_on(boot):
    guest = boot(say(b"one\n") + BLOCK + SPIN)
    for seconds in (25, 50):
        assert guest.run(25)
        assert guest.virtual_ns == pytest.approx(seconds * 1e9, rel=1e-3)
    with pytest.raises(xenemu.GuestFailed, match="waits for an event that nothing can send"):
        guest.expect("two")


def test_a_snapshot_is_gone_back_to_as_often_as_one_likes(boot):
    guest = boot(LATER)
    guest.expect("one")
    snapshot, at = guest.snapshot(), (guest.virtual_ns, guest.instructions, guest.console)
    done = [guest.finish()]
    for _ in range(2):
        guest.restore(snapshot)
        assert (guest.virtual_ns, guest.instructions, guest.console) == at
        done.append(guest.finish())
    assert len({(result.log, result.instructions) for result in done}) == 1
    with snapshot.fork() as other:
        assert other.finish().log == done[0].log
    guest.close()
    with pytest.raises(RuntimeError, match=r"^the guest is closed$"):
        guest.restore(snapshot)
    with pytest.raises(RuntimeError, match=r"^the snapshot is closed$"):
        snapshot.fork()


def test_the_guests_process_is_confined_and_this_one_is_not(boot):
    def status(pid):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith(("NoNewPrivs", "Seccomp:"))]

    before = status("self")
    guest = boot(LATER)
    assert guest.run(0.01)
    assert status(guest._process.pid) == ["1", "2"]
    assert status("self") == before != ["1", "2"]


def test_several_guests_do_not_see_each_other(boot, tmp_path):
    (tmp_path / "other").write_bytes(kernel(say(b"other\n") + SPIN))
    guest = boot(LATER)
    with xenemu.boot(tmp_path / "other", memory="64M") as other:
        other.expect("other")
        guest.expect("one")
        assert (guest.output, other.output) == ("one\n", "other\n")


def test_what_became_of_it(boot):
    guest = boot(shutdown(CRASH))
    result = guest.finish(check=False)
    assert result.verdict is xenemu.Verdict.CRASH
    assert isinstance(result, xenemu.Result)
    assert "Registers" in guest.report()


def test_what_cannot_be_booted_is_told_by_the_command_lines_errors(boot, tmp_path):
    with pytest.raises(xenemu.ImageError, match="a script, not a kernel") as caught:
        boot(b"#!/bin/sh\n")
    assert "\n" not in str(caught.value)
    with pytest.raises(xenemu.FitError):
        boot(SPIN, memory="1M")
    with pytest.raises(xenemu.UsageError, match=r"^memry: unknown key; did you mean memory"):
        boot(SPIN, memry="64M")
    with pytest.raises(xenemu.UsageError, match=r"^kernel: .*nope: there is no such file"):
        xenemu.boot(tmp_path / "nope")
    with pytest.raises(xenemu.UsageError, match=r"^these are 2 boots"):
        boot(SPIN, vcpus=[1, 2])


def test_errors_come_as_what_they_are():
    for kind in ERRORS.values():
        sent = problem(kind("why"))
        assert type(raised(sent)) is kind
        assert str(raised(sent)) == "why"
    assert problem(PlanError(Place("plan"), "x: y")).error == "UsageError"
    assert type(raised(Problem("Traceback"))) is RuntimeError
    assert type(raised(Problem("x", "SystemExit"))) is RuntimeError


def test_a_script_without_a_main_guard_boots_one_guest(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(LATER))
    script = tmp_path / "script.py"
    script.write_text(
        "import xenemu\nprint('begins')\n"
        "with xenemu.boot('kernel', memory='64M') as guest:\n    print(guest.finish().raw)\n"
    )
    found = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (found.stdout, found.stderr) == (b"begins\nb'one\\ntwo\\n'\n", b"")


def test_a_failed_expectation_is_about_itself_and_the_guest_goes_on(boot):
    guest = boot(LATER, virtual_timeout=0.01)
    with pytest.raises(xenemu.GuestFailed, match=r"^timeout: still running .*'three'"):
        guest.expect("three")
    waits = [wait_until(ms * 1_000_000) for ms in (600, 1200, 1800, 2400)]
    code = [*waits[:3], say(b"one\n"), waits[3], say(b"two\n"), shutdown(POWEROFF)]
    guest = boot(b"".join(code), quiet_timeout=0.5)
    for missing in ("three", "four"):
        with pytest.raises(xenemu.GuestFailed, match=rf"^quiet: .*never seen: '{missing}'\n"):
            guest.expect(missing)
    guest.send("typed")
    assert guest.run(1)
    assert guest.expect("two").text == "two"
    assert guest.finish().findings == []


def test_what_the_console_shows_is_found_without_a_run_and_after_the_end(boot):
    guest = boot(LATER)
    with pytest.raises(xenemu.GuestFailed, match=r"^timeout: the console does not show it yet; n"):
        guest.expect("one", timeout=0)
    assert guest.virtual_ns == 0
    guest.run(0.01)
    assert guest.expect("one", timeout=0).text == "one"
    assert not guest.run(1)
    assert guest.expect("t(w)o").groups == ("w",)
    for missing in ("three", "four"):
        with pytest.raises(xenemu.GuestFailed, match=rf"powered off; never seen: '{missing}'\n"):
            guest.expect(missing)
    with pytest.raises(xenemu.GuestFailed, match=r"^send: the guest has ended: the guest powered"):
        guest.sendline("x")
    assert guest.finish().findings == []


def test_what_was_typed_for_a_guest_that_waits_wakes_it(boot):
    guest = boot(say(b"one\n") + BLOCK + SPIN)
    for missing in ("two", "three"):
        with pytest.raises(xenemu.GuestFailed, match=rf"can send; never seen: '{missing}'\n"):
            guest.expect(missing)
    guest.send("x")
    assert not guest.run(0.01)
    assert guest.result.sentence.startswith("an event upcall at")  # for which it has no handler


def test_a_paused_guest_says_so_and_can_be_unpaused(boot):
    guest = boot(LATER)
    guest.pause()
    with pytest.raises(xenemu.GuestFailed, match=r"^timeout: the guest is paused, and .*'one'"):
        guest.expect("one", timeout=1)
    assert guest.run(0.01)
    assert (guest.instructions, guest.output) == (0, "")
    guest.unpause()
    assert guest.expect("one").text == "one"


WRONG = (
    *[(("expect", "one"), {"timeout": wrong}) for wrong in ("5", -1, float("nan"), True, 1e9)],
    *[(("expect", wrong), {}) for wrong in (b"x", None, 1, "(", "\udc80")],
    *[(("run", wrong), {}) for wrong in ("1", None, True, 0, -1, float("nan"))],
    *[(("send", wrong), {}) for wrong in (None, b"x", 1, "\udc80")],
    *[((name, None), {}) for name in ("restore", "sendline", "attach", "memory_target", "sysrq")],
    (("reboot",), {"within": "1"}),
    (("nmi", 1.5), {}),
    (("ask", "sysrq"), {"key": b"h"}),
    (("ask", None), {}),
)


def test_a_callers_mistake_is_one_line_before_the_guest_hears_of_it(boot):
    guest = boot(LATER)
    sent = []
    guest._ask = lambda *words: sent.append(words)
    for (name, *arguments), keys in WRONG:
        with pytest.raises(xenemu.UsageError, match=rf"^{name}: [^\n]*$"):
            getattr(guest, name)(*arguments, **keys)
    with pytest.raises(xenemu.UsageError, match=r"^read: path is 5: give a string"):
        guest.xenstore.read(5)
    for wrong in ({"address": "x", "size": 1}, {"address": 0, "size": "x"}):
        with pytest.raises(xenemu.UsageError, match=r"^read: .* is 'x': give a number$"):
            guest.memory.read(**wrong)
    assert not sent
    del guest._ask
    assert guest.expect("one").text == "one"


def test_what_no_guest_can_be_asked_for_is_a_usage_error(boot):
    guest = boot(LATER)
    for ask, words in (
        (lambda: guest.vcpu_online(1), "vcpu: there is no vcpu 1; there are 1"),
        (lambda: guest.attach("xvdb"), "attach: there is no device 'xvdb'"),
        (lambda: guest.memory_target("lots"), "memory: target is 'lots'"),
        (lambda: guest.sysrq("hh"), "sysrq: key is 'hh'"),
        (lambda: guest.xenstore.read("nosuch"), "xenstore: there is no /local/domain/1/nosuch"),
        (guest.unpause, "unpause: the guest is not paused"),
        (lambda: guest.ask("nmi", vcpus=0), "nmi: nmi has no 'vcpus'"),
    ):
        with pytest.raises(xenemu.UsageError) as caught:
            ask()
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)
    assert guest.finish().findings == []


def test_what_a_guest_did_can_be_read_after_its_end(boot):
    with boot(shutdown(CRASH)) as guest:
        guest.run(1)
        before = guest.result
        report, output = guest.report(), guest.output
    assert guest.is_closed
    assert guest.result == before
    assert (guest.report(), guest.output) == (report, output)
    assert "Registers" in report
    with boot(LATER) as guest:
        guest.expect("one")
    assert (guest.output, guest.console.split()[-1]) == ("one\n", "one")


def test_what_is_wrong_is_at_the_callers_line_and_in_pythons_words(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(SPIN))
    for arguments, keys, words in (
        ([tmp_path / "kernel"], {"mode": "pvh"}, r"cannot boot as pvh: there .* mode = \"pv\"$"),
        ([tmp_path / "kernel"], {"memory": 256}, r'^memory: 256: .* as in "256M"$'),
        ([""], {}, r"^kernel: the name is empty; give a file's$"),
        ([None], {}, r"^kernel: None is no path"),
    ):
        with pytest.raises(xenemu.XenemuError, match=words) as caught:
            xenemu.boot(*arguments, **keys)
        assert len(caught.traceback) == 2  # here, and in boot()
        assert caught.value.__suppress_context__
