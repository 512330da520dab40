"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import multiprocessing
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tinyguest import BLOCK, CRASH, POWEROFF, SPIN, kernel, say, shutdown, wait_until

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
PLUGIN = "xenemu.smoke.pytest_plugin"
QUIET = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")


@pytest.fixture
def run(pytester, monkeypatch):
    """A function that runs pytest on a test file, with the guests that it names."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))

    def run(test, *options, **codes):
        for name, code in codes.items():
            (pytester.path / name).write_bytes(code)
        pytester.makepyfile(test)
        plugin = () if installed else ("-p", PLUGIN)
        return pytester.runpytest_inprocess(*QUIET, *plugin, *options)

    return run


def test_expectations_run_the_guest_step_by_step(run):
    test = """
        def test(boot):
            guest = boot("guest", memory="64M")
            found = guest.expect(r"(?P<word>o\\w+) (\\d)")
            assert (found.text, found.groups) == ("one 1", ("one", "1"))
            assert found.named == {"word": "one"}
            assert guest.expect("two").text == "two"
            result = guest.finish()
            assert (result.mode, result.raw) == ("pv64", b"one 1\\ntwo\\n")
    """
    code = say(b"one 1\n") + say(b"two\n") + shutdown(POWEROFF)
    run(test, guest=kernel(code)).assert_outcomes(passed=1)


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_not_seen_fails_the_test_with_the_console(run, monkeypatch, ci):
    monkeypatch.setenv("CI", ci)  # with which pytest's summary has messages in full
    test = """
        def test(boot):
            boot("guest", memory="64M").expect("login:")
    """
    result = run(test, guest=kernel(say(b"one\n") + shutdown(CRASH)))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*crash: the guest crashed*; never seen: 'login:'*", "*  one"])
    text = result.stdout.str()
    assert text.count("  one\n") == 1
    assert 'boot("guest", memory="64M").expect("login:")' in text  # the test's line, and no other's
    assert "def expect(" not in text


def test_a_plain_assertion_shows_the_consoles_and_where_they_are_kept(run):
    test = """
        def test(boot):
            for word in ("one", "two"):
                boot("guest", name=word, memory="64M").expect("hello")
            boot("guest", name="silent", memory="64M")
            assert 1 == 2
        def test_that_boots_nothing(boot):
            assert 3 == 4
    """
    result = run(test, "--xenemu-log-dir", "logs", guest=kernel(say(b"hello\n") + SPIN))
    result.assert_outcomes(failed=2)
    lines = ["*assert 1 == 2*"]
    for number, (name, text) in enumerate((("one", "*  hello"), ("two", "*  hello")), 1):
        lines += [f"*- xenemu: console of {name} -*", text, f"*logs/*test-{number}.log)"]
    lines += [
        "*- xenemu: console of silent -*",
        "(it has printed nothing)",
        "*assert 3 == 4*",
    ]
    result.stdout.fnmatch_lines(lines)
    assert result.stdout.str().count("- xenemu: console of") == 3


def test_a_guest_that_was_interrupted_gives_no_wrong_answers(run):
    """As by a plugin with time-outs: the answer to what was asked may still come."""
    test = """
        import pytest
        def test(boot, monkeypatch):
            guest = boot("guest", memory="64M")
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(type(guest._pipe), "poll", lambda *_: 1 / 0)
                guest.expect("one")
            guest.finish()
    """
    result = run(test, guest=kernel(say(b"one\n") + shutdown(POWEROFF)))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*RuntimeError: the guest was interrupted*"])


def test_a_guest_that_idles_for_ever_fails_at_once(run):
    test = """
        def test(boot):
            boot("guest", memory="64M").expect("login:")
    """
    result = run(test, guest=kernel(BLOCK + SPIN))
    result.stdout.fnmatch_lines(["*waits for an event that nothing can send*"])


def test_finish_says_what_speaks_against_it(run):
    test = """
        import pytest
        from xenemu.smoke.guest import GuestFailed
        def test(boot):
            with pytest.raises(GuestFailed, match="^crash: "):
                boot("guest", memory="64M").finish()
            result = boot("guest", memory="64M").finish(check=False)
            assert result.verdict.value == "crash"
            boot("guest", memory="64M", exit="crash").finish()
    """
    run(test, guest=kernel(shutdown(CRASH))).assert_outcomes(passed=1)


def test_a_marker_describes_the_guest(run):
    test = """
        import pytest
        @pytest.mark.xenemu("guest", memory="64M")
        def test(guest):
            guest.expect("one")
        @pytest.mark.xenemu(kernel="guest", memory="64M")
        def test_by_keyword(guest):
            guest.expect("one")
    """
    result = run(test, "--strict-markers", guest=kernel(say(b"one\n") + SPIN))
    result.assert_outcomes(passed=2)


def test_a_marker_that_describes_no_guest_is_told_at_its_line(run):
    test = """
        import pytest
        def test_none(guest):
            pass
        @pytest.mark.xenemu
        def test_empty(guest):
            pass
        @pytest.mark.xenemu("guest", memry="64M")
        def test_wrong(guest):
            pass
    """
    result = run(test, guest=b"")
    result.assert_outcomes(errors=3)
    name = "*_told_at_its_line.py"
    wanted = "the fixture guest wants a kernel: @pytest.mark.xenemu(*"
    result.stdout.fnmatch_lines(
        [
            f"{name}:2: {wanted}",
            f"{name}:4: {wanted}",
            f"{name}:7: @pytest.mark.xenemu: memry: unknown key*",
        ]
    )
    assert "def guest(" not in result.stdout.str()


def test_a_plan_gives_the_tests(run, pytester):
    (pytester.path / "plan.toml").write_text(
        '[defaults]\nkernel = "guest"\nmemory = "64M"\n'
        '[[boot]]\nname = "good"\nexpect = "one"\n[[boot]]\nname = "bad"\nexpect = "two"\n'
    )
    test = """
        import pytest
        from pathlib import Path
        from xenemu.smoke.plan import load_plan
        @pytest.mark.parametrize("entry", load_plan(Path(__file__).parent / "plan.toml"), ids=str)
        def test(boot, entry):
            boot(entry).finish()
    """
    result = run(test, "-v", guest=kernel(say(b"one\n") + shutdown(POWEROFF)))
    result.stdout.fnmatch_lines(["*test?good? PASSED*", "*test?bad? FAILED*"])


def test_consoles_are_kept_and_processes_are_not(run, pytester):
    test = """
        import multiprocessing
        from pathlib import Path
        def test_one(boot):
            boot("guest", memory="64M").expect("one")
            boot("guest", memory="64M").expect("one")
        def test_two():
            (nursery,) = multiprocessing.active_children()
            assert Path(f"/proc/{nursery.pid}/task/{nursery.pid}/children").read_text() == ""
    """
    result = run(test, "--xenemu-log-dir", "logs", guest=kernel(say(b"one\n") + SPIN))
    assert multiprocessing.active_children() == []
    result.assert_outcomes(passed=2)
    logs = sorted(path.name for path in (pytester.path / "logs").iterdir())
    assert len(logs) == 2
    assert logs[0].endswith("test_one-1.log")
    assert (pytester.path / "logs" / logs[0]).read_text().endswith("  one\n")


def test_consoles_that_are_there_stay(run, pytester):
    test = """
        def test_one(boot):
            boot("guest", memory="64M").expect("one")
    """
    options = ("--xenemu-log-dir", "logs")
    run(test, *options, guest=kernel(say(b"one\n") + SPIN)).assert_outcomes(passed=1)
    (log,) = (pytester.path / "logs").iterdir()
    log.write_text("mine")
    result = run(test, *options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["--xenemu-log-dir logs/*: the file exists; remove it, or *"])
    assert "During handling" not in result.stdout.str()
    assert log.read_text() == "mine"


def test_it_works_with_xdist(run):
    test = """
        import pytest
        @pytest.mark.parametrize("number", range(2))
        def test(boot, number):
            boot("guest", memory="64M").expect("one")
    """
    result = run(test, "-n", "2", guest=kernel(say(b"one\n") + SPIN))
    result.assert_outcomes(passed=2)


def test_what_cannot_be_booted_is_told(run):
    test = """
        from xenemu.smoke.plan import make_boots
        def test_key(boot):
            boot("guest", memry="64M")
        def test_several(boot):
            boot("guest", mode=["pv", "pvh"])
        def test_described_already(boot):
            boot(make_boots({"kernel": "guest"})[0], mode="pv")
        def test_image(boot):
            boot("guest", memory="64M")
        def test_pattern(boot):
            boot("good", memory="64M").expect("(")
    """
    result = run(test, guest=b"#!/bin/sh\n", good=kernel(SPIN))
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            '>*boot("guest", memry="64M")',
            "E *UsageError: memry: unknown key*",
            "*UsageError: these are 2 boots; give one*",
            "*UsageError: mode: the boot guest has been described already*",
            "*a script, not a kernel*",
            '>*boot("good", memory="64M").expect("(")',
            "E *UsageError: expect: '(' is no regular expression: missing )*",
        ]
    )
    assert "make_boots(table" not in result.stdout.str()


@pytest.fixture
def grub(guest_image):
    """GRUB's path, found before pytester moves the home directory."""
    return str(guest_image("grub-x86_64-xen"))


def test_a_person_types(grub, run):
    test = f"""
        import pytest
        @pytest.mark.xenemu({grub!r})
        def test(guest):
            guest.expect("grub> ")
            guest.sendline("ls")
            guest.expect(r"\\(memdisk\\)")
            guest.sendline("halt")
            guest.finish()
    """
    run(test).assert_outcomes(passed=1)


def test_a_guest_is_copied_and_both_go_on(run):
    test = """
        def test(boot):
            guest = boot("guest", memory="64M")
            guest.expect("one")
            with guest.fork() as copy:
                copy.expect("two")
                with copy.fork() as another:
                    assert another.finish().raw == b"one\\ntwo\\n"
                done = copy.finish()
                copy.close()
            assert "two" not in guest.console
            assert guest.finish().instructions == done.instructions
    """
    code = say(b"one\n") + wait_until(20_000_000) + say(b"two\n") + shutdown(POWEROFF)
    run(test, guest=kernel(code)).assert_outcomes(passed=1)


def test_a_copy_outlives_the_guest_that_it_was_copied_from(run):
    test = """
        def test(boot):
            guest = boot("guest", memory="64M")
            copy = guest.fork()
            guest.close()
            assert copy.finish().raw == b"one\\n"
            copy.close()
    """
    run(test, guest=kernel(say(b"one\n") + shutdown(POWEROFF))).assert_outcomes(passed=1)


def test_what_cannot_be_copied_is_told(run):
    test = """
        def test(boot):
            boot("guest", memory="64M", net="none-but-pcap").fork()
    """
    result = run(test, guest=kernel(SPIN))
    result.stdout.fnmatch_lines(["*UsageError: guest has a network interface, which copies *"])


def test_a_copys_console_is_kept_and_shown(run, pytester):
    test = """
        def test(boot):
            guest = boot("guest", memory="64M")
            with guest.fork() as copy:
                copy.expect("one")
            with guest.fork() as copy:
                with copy.fork():
                    pass
                copy.expect("one")
                assert 1 == 2
    """
    options = ("--xenemu-log-dir", "logs")
    result = run(test, *options, guest=kernel(say(b"one\n") + SPIN))
    result.stdout.fnmatch_lines(["*- xenemu: console of guest, copy 1.2 -*", "*  one"])
    names = sorted(path.name for path in (pytester.path / "logs").iterdir())
    assert [name.rpartition("-")[2] for name in names] == [
        *("1.1.log", "1.2.1.log", "1.2.log", "1.log")
    ]
    assert (pytester.path / "logs" / names[2]).read_text().endswith("  one\n")
    shown = run(test, guest=kernel(say(b"one\n") + SPIN)).stdout.str()
    assert "copy 1.2 -" in shown
    assert "copy 1.1 -" not in shown


def test_boots_of_a_plan_may_start_from_others(run, pytester):
    (pytester.path / "plan.toml").write_text(
        '[[boot]]\nname = "base"\nkernel = "guest"\nmemory = "64M"\nsnapshot = "one"\n'
        '[[boot]]\nname = "a"\nfrom = "base"\nsnapshot = "two"\n'
        '[[boot]]\nname = "b"\nfrom = "a"\nexpect = "three"\n'
        '[[boot]]\nname = "never"\nkernel = "guest"\nmemory = "64M"\nsnapshot = "x"\n'
        '[[boot]]\nname = "c"\nfrom = "never"\n'
    )
    test = """
        import pytest
        from xenemu.smoke.plan import load_plan
        @pytest.mark.parametrize("entry", load_plan("plan.toml"), ids=str)
        def test(boot, entry):
            assert boot(entry).finish().log.count("one") == 1
    """
    code = say(b"one\n") + wait_until(20_000_000) + say(b"two\n")
    code += wait_until(40_000_000) + say(b"three\n") + shutdown(POWEROFF)
    result = run(test, "-v", guest=kernel(code))
    result.stdout.fnmatch_lines(["*?base? PASSED*", "*?a? PASSED*", "*?b? PASSED*"])
    result.stdout.fnmatch_lines(["*GuestFailed: never did not reach its snapshot: the guest powe*"])
