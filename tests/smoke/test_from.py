"""Boots that start from another one: each is a copy of that boot's process, at its snapshot."""

from __future__ import annotations

import pytest

import crashing
from moduleguest import module_initramfs
from tinyguest import POWEROFF, SPIN, kernel, say, shutdown, wait_until
from xenemu.smoke import runner
from xenemu.smoke.guest import Guest
from xenemu.smoke.plan import load_plan, make_boots
from xenemu.smoke.verdict import Verdict

CODE = say(b"one\n") + wait_until(20_000_000) + say(b"two\n") + shutdown(POWEROFF)
BASE = '[[boot]]\nname = "base"\nkernel = "guest"\nmemory = "64M"\n'


class Nobody:
    def __init__(self):
        self.began_with = []

    def began(self, boot):
        self.began_with.append(boot.name)

    def progress(self, boot, progress):
        pass

    def finished(self, result):
        pass


@pytest.fixture
def run(tmp_path):
    """A function that runs a plan for guests of that code; the results by name."""

    def run(text, code=CODE, **options):
        (tmp_path / "guest").write_bytes(kernel(code))
        (tmp_path / "plan.toml").write_text(text)
        results = runner.run(load_plan(tmp_path / "plan.toml"), 2, Nobody(), **options)
        return {result.boot.name: result for result in results}

    return run


def table(name, more, origin="base"):
    return f'[[boot]]\nname = "{name}"\nfrom = "{origin}"\n{more}\n'


def test_all_end_as_a_boot_that_nobody_starts_from(run):
    alone = run(BASE)["base"]
    plan = BASE + 'snapshot = "one"\nexit = "poweroff"\n'
    found = run(plan + table("a", 'expect = "two"\nexit = "poweroff"') + table("b", ""))
    assert [result.verdict for result in found.values()] == [Verdict.PASS] * 3
    assert {result.instructions for result in found.values()} == {alone.instructions}
    assert {result.raw for result in found.values()} == {alone.raw}
    assert found["base"].log == alone.log
    one, two = alone.log.splitlines(keepends=True)
    assert found["a"].log == one + "(so far, this is base)\n" + two
    assert [phase.name for phase in found["a"].phases] == ["copied", "expect 1", "end"]


def test_each_has_its_own_expectations_and_its_own_verdict(run):
    plan = BASE + 'expect = "one"\n'
    found = run(plan + table("seen", 'expect = "one"\nexit = "poweroff"') + table("b", ""))
    assert found["base"].verdict is Verdict.PASS
    assert found["seen"].verdict is Verdict.UNMET, "that was printed before it began"
    assert found["b"].verdict is Verdict.PASS


def test_limits_count_from_the_copy(run):
    code = say(b"one\n") + wait_until(300_000_000) + say(b"two\n") + SPIN
    plan = BASE + 'snapshot = "two"\nquiet_timeout = 1\n'
    found = run(plan + table("a", "virtual_timeout = 0.2"), code)
    assert found["a"].verdict is Verdict.TIMEOUT
    assert 500_000_000 <= found["a"].virtual_ns < 600_000_000


def test_a_snapshot_may_be_a_time_and_the_origin_passes_there(run):
    found = run(BASE + "snapshot = 0.01\n" + table("a", 'expect = "two"'))
    assert [result.verdict for result in found.values()] == [Verdict.PASS] * 2
    assert found["base"].raw == b"one\n"
    assert 10_000_000 <= found["base"].virtual_ns <= 20_000_000


def test_one_may_start_from_one_that_started_from_another(run):
    code = say(b"one\n") + wait_until(20_000_000) + say(b"two\n")
    code += wait_until(40_000_000) + say(b"three\n") + shutdown(POWEROFF)
    plan = BASE + 'snapshot = "one"\n' + table("a", 'snapshot = "two"')
    found = run(plan + table("b", 'expect = "three"\nexit = "poweroff"', "a"), code)
    assert [result.verdict for result in found.values()] == [Verdict.PASS] * 3
    assert found["b"].raw == b"one\ntwo\nthree\n"
    assert "(so far, this is a)\n    0.040" in found["b"].log


def test_an_origin_that_never_gets_there_skips_them_and_tells_why_once(run):
    plan = BASE + 'snapshot = "never"\nexit = "panic"\n'
    found = run(plan + table("a", 'snapshot = "x"') + table("b", "", "a"))
    assert found["base"].verdict is Verdict.END
    why = f"base did not reach its snapshot: {found['base'].sentence}"
    assert (found["a"].verdict, found["a"].sentence) == (Verdict.SKIPPED, why)
    assert found["b"].sentence == f"a did not reach its snapshot: {why}"


@pytest.mark.parametrize(("snapshot", "words"), [('"never"', "'never'"), ("5.5", "5.5 s")])
@pytest.mark.parametrize("more", ["", 'exit = "poweroff"\n'])
def test_an_origin_that_ends_well_before_its_snapshot_has_not_passed(run, snapshot, words, more):
    found = run(BASE + f"snapshot = {snapshot}\n{more}" + table("a", ""))
    assert found["base"].verdict is Verdict.UNMET
    assert found["base"].sentence == f"the guest powered off; its snapshot, {words}, never came"
    assert found["a"].verdict is Verdict.SKIPPED


def test_a_crash_in_the_slice_of_the_snapshot_is_no_snapshot(run):
    found = run(BASE + 'snapshot = "one"\n' + table("a", ""), say(b"one\n") + b"\x0f\x0b")
    assert found["base"].verdict is Verdict.REFUSED
    assert found["a"].verdict is Verdict.SKIPPED


def test_an_origin_whose_process_is_lost_loses_one(run):
    for name, said in (("dies", "it has ended"), ("lies", "it named 1, which is no copy of it")):
        plan = f'[[boot]]\nname = "origin {name}"\nkernel = "guest"\nsnapshot = "x"\n'
        plan += table("a", "", f"origin {name}") + '[[boot]]\nname = "good"\nkernel = "guest"\n'
        found = run(plan, main=crashing.main)
        lost = found[f"origin {name}"]
        assert (lost.verdict, lost.exit_code) == (Verdict.XENEMU, 70)
        assert lost.sentence == f"the process of origin {name}: {said}"
        assert found["a"].verdict is Verdict.SKIPPED
        assert found["good"].verdict is Verdict.PASS


def test_how_a_copy_has_died_is_known(run):
    plan = '[[boot]]\nname = "origin"\nkernel = "guest"\nsnapshot = "x"\n'
    found = run(plan + table("segv", "", "origin"), main=crashing.main)
    assert found["origin"].verdict is Verdict.PASS
    assert found["segv"].sentence == "the process that ran it ended: SIGSEGV"
    assert found["segv"].report == "the engine's last words"


def test_a_process_that_says_twice_where_it_is_is_ended(run):
    plan = '[[boot]]\nname = "repeats"\nkernel = "guest"\nsnapshot = "x"\n'
    found = run(plan + table("good", "", "repeats"), main=crashing.main)
    assert found["repeats"].sentence == "the process that ran it sent what nobody had asked for"
    assert found["good"].verdict is Verdict.PASS


SHELL = b"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko
until [ -b /dev/xvda ]; do sleep 0.01; done
printf 'BEFORE..' | dd of=/dev/xvda bs=8 seek=1
exec sh
"""


def test_copies_of_debian_have_disks_of_their_own(guest_image, tmp_path):
    """And each reads what was written before, though none may open the file."""
    kernel = "debian-cloud-amd64"
    disk, initrd = tmp_path / "disk", tmp_path / "initrd"
    disk.write_bytes(b"ORIGINAL" + bytes(65528))
    initrd.write_bytes(module_initramfs(guest_image, kernel, SHELL, ["xen-blkfront"]))
    keys = {"kernel": str(guest_image(kernel)), "mode": "pvh", "cmdline": "console=hvc0 quiet"}
    (boot,) = make_boots(keys | {"disk": str(disk), "initrd": str(initrd)})
    with Guest(boot) as guest:
        guest.expect("/ # ")
        for word in ("CHANGED1", "CHANGED2"):
            with guest.fork() as copy:
                copy.sendline("echo 3 > /proc/sys/vm/drop_caches; head -c 16 /dev/xvda; echo")
                copy.expect("^ORIGINALBEFORE..")
                copy.sendline(f"printf {word} | dd of=/dev/xvda; sync")
                copy.sendline("echo 3 > /proc/sys/vm/drop_caches; head -c 16 /dev/xvda; echo")
                copy.expect(f"^{word}BEFORE..")
    assert disk.read_bytes()[:16] == b"ORIGINAL" + bytes(8)


def test_one_kernel_that_cannot_be_loaded_is_each_boots_own_verdict(run):
    boots = "".join(f'[[boot]]\nname = "{name}"\nkernel = "plan.toml"\n' for name in "ab")
    found = run(boots + BASE)
    assert [result.verdict for result in found.values()] == [
        *(Verdict.IMAGE, Verdict.IMAGE, Verdict.PASS)
    ]
