"""Plans: what a TOML file stands for, and how what is wrong in it is told."""

from __future__ import annotations

import itertools
import math

import pytest

from xenemu.errors import UsageError
from xenemu.smoke.plan import Boot, Step, load_plan, make_boots
from xenemu.smoke.verdict import Verdict


@pytest.fixture
def plan(tmp_path):
    """A function that writes a plan, beside a kernel `k` and a directory `d`, and reads it."""
    (tmp_path / "k").write_bytes(b"kernel")
    (tmp_path / "k2").write_bytes(b"kernel")
    (tmp_path / "d").mkdir()

    def read(text):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return load_plan(path)

    return read


def refused(plan, text):
    """Where and what is wrong, without the directory."""
    with pytest.raises(UsageError) as caught:
        plan(text)
    return str(caught.value).rpartition("/plan.toml")[2].removeprefix(":")


def test_a_kernel_alone(plan, tmp_path):
    assert plan('[[boot]]\nkernel = "k"\n') == [Boot("k", tmp_path / "k")]


def test_everything(plan, tmp_path):
    (boot,) = plan(
        """
        [[boot]]
        name = "all"
        kernel = "k"
        mode = "pvh"
        cmdline = "quiet"
        memory = "64M"
        init = "k2"
        rootfs = "d"
        busybox = "k2"
        module = ["k", "k2=root=x"]
        disk = ["k,rw", "k2", "k,name=xvdc,overlay=o"]
        share = "d,tag=out"
        environment = {A = "1", B = "two words"}
        input = "ls"
        expect = ["one", {pattern = "two", send = "x"}]
        reject = "bad"
        exit = ["poweroff", "panic"]
        on_suspend = "cancel"
        tolerate = "warning"
        timeout = 10
        virtual_timeout = 2.5
        quiet_timeout = "1s"
        rng_seed = 0x12
        efi_root = "d"
        maxvcpus = 3
        slice = "20us"
        schedule_seed = 5
        """
    )
    assert boot == Boot(
        name="all",
        kernel=tmp_path / "k",
        mode="pvh",
        cmdline="quiet",
        memory=64 << 20,
        init=tmp_path / "k2",
        rootfs=tmp_path / "d",
        busybox=tmp_path / "k2",
        module=(str(tmp_path / "k"), f"{tmp_path / 'k2'}=root=x"),
        disk=(
            f"{tmp_path / 'k'},rw",
            str(tmp_path / "k2"),
            f"{tmp_path / 'k'},name=xvdc,overlay={tmp_path / 'o'}",
        ),
        share=(f"{tmp_path / 'd'},tag=out",),
        environment=(("A", "1"), ("B", "two words")),
        input="ls",
        expect=(Step("one"), Step("two", "x")),
        reject=("bad",),
        exit=("poweroff", "panic"),
        on_suspend="cancel",
        tolerate=(Verdict.WARNING,),
        timeout=10,
        virtual_timeout=2.5,
        quiet_timeout=1,
        rng_seed=18,
        efi_root=tmp_path / "d",
        maxvcpus=3,
        slice=20_000,
        schedule_seed=5,
    )
    assert boot.full_cmdline == 'quiet A=1 "B=two words"'


def test_lists_stand_for_each_combination(plan):
    boots = plan(
        '[[boot]]\nname = "n"\nkernel = ["k", "k2"]\nmode = ["pv", "pvh"]\nmemory = ["64M"]\n'
    )
    assert [boot.name for boot in boots] == ["n k pv", "n k pvh", "n k2 pv", "n k2 pvh"]
    assert [boot.kernel.name for boot in boots] == ["k", "k", "k2", "k2"]
    assert {boot.memory for boot in boots} == {64 << 20}


def test_entry_is_another_name_of_mode(plan):
    boots = plan(
        '[defaults]\nmode = "pv"\nkernel = "k"\n'
        '[[boot]]\nentry = ["pvh", "linux64"]\n[[boot]]\nname = "other"\n'
    )
    assert [(boot.name, boot.mode) for boot in boots] == [
        *(("k pvh", "pvh"), ("k linux64", "linux64"), ("other", "pv"))
    ]


def test_numbers_of_vcpus_stand_for_boots(plan):
    boots = plan('[[boot]]\nname = "n"\nkernel = "k"\nvcpus = [1, 4]\n')
    assert [(boot.name, boot.vcpus) for boot in boots] == [("n 1vcpu", 1), ("n 4vcpu", 4)]


def test_seeds_stand_for_boots(plan):
    boots = plan('[[boot]]\nname = "n"\nkernel = "k"\nslice = 500\nschedule_seed = [0, 4]\n')
    assert [(boot.name, boot.schedule_seed) for boot in boots] == [("n seed0", 0), ("n seed4", 4)]
    assert {boot.slice for boot in boots} == {500}


def test_defaults_count_where_a_boot_says_nothing(plan):
    boots = plan(
        '[defaults]\nkernel = "k"\ntimeout = 5\n'
        '[[boot]]\nname = "a"\n[[boot]]\nname = "b"\ntimeout = 6\n'
    )
    assert [(boot.name, boot.timeout) for boot in boots] == [("a", 5), ("b", 6)]


def test_strings_want_quotes(plan):
    for line, wanted in (
        ("kernel = vmlinuz", 'kernel = "vmlinuz"'),
        ("memory = 256M  # enough", 'memory = "256M"'),
        ("cmdline=console=hvc0 quiet", 'cmdline = "console=hvc0 quiet"'),
        ("initrd = /boot/initrd.gz", 'initrd = "/boot/initrd.gz"'),
    ):
        assert refused(plan, f"[[boot]]\n{line}\n") == f"2: strings want quotes: {wanted}"
    for line in ("timeout = 5 6", 'kernel = "vmlinuz', "kernel = ["):
        assert "quotes" not in refused(plan, f"[[boot]]\n{line}\n"), line


RAMDISKS = {"initrd": "k", "init": "k", "rootfs": "d"}


def test_a_boots_own_ramdisk_replaces_the_defaults(plan, tmp_path):
    """But an init and a root file system are of one ramdisk."""
    for default, own in itertools.permutations(RAMDISKS, 2):
        (boot,) = plan(
            f'[defaults]\n{default} = "{RAMDISKS[default]}"\n'
            f'[[boot]]\nkernel = "k"\n{own} = "{RAMDISKS[own]}"\n'
        )
        found = {key for key in RAMDISKS if getattr(boot, key)}
        assert found == ({own} if "initrd" in (default, own) else {default, own})


def test_an_empty_path_is_none(plan):
    for key, value in RAMDISKS.items():
        boots = plan(
            f'[defaults]\nkernel = "k"\n{key} = "{value}"\n'
            f'[[boot]]\nname = "with"\n[[boot]]\nname = "without"\n{key} = ""\n'
        )
        assert [bool(getattr(boot, key)) for boot in boots] == [True, False]
    with pytest.raises(UsageError, match="kernel: "):
        plan('[[boot]]\nkernel = ""\n')


def test_defaults_that_contradict_themselves(plan):
    text = '[defaults]\ninitrd = "k"\nrootfs = "d"\n[[boot]]\nkernel = "k"\n'
    assert refused(plan, text) == "3: rootfs: initrd in line 2 says another; give one of the two"


def test_a_boot_knows_its_place(plan, tmp_path):
    boots = plan(
        '[defaults]\nkernel = "k"\ncmdline = """\n[[boot]]\n"""\n# a comment\n\n'
        '[[boot]] # 8\nmode = ["pv",\n  "pvh"]\n'
        '[["boot"]]\nname = "two"\n[boot.environment]\nA = "1"\n'
    )
    places = [str(boot.place) for boot in boots]
    assert places == [f"{tmp_path}/plan.toml:{line}" for line in (8, 8, 11)]
    assert plan('boot = [{kernel = "k"}]\n')[0].place.line == 1
    assert make_boots({"kernel": "k"}, tmp_path)[0].place is None


def test_times_that_nobody_set(plan):
    (boot,) = plan('[[boot]]\nkernel = "k"\n')
    assert (boot.timeout, boot.virtual_timeout, boot.quiet_timeout) == (300, math.inf, 20)


def test_paths_may_have_variables(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("BUILD", str(tmp_path))
    assert plan('[[boot]]\nkernel = "$BUILD/k"\n')[0].kernel == tmp_path / "k"
    monkeypatch.delenv("BUILD")
    words = "2: kernel: $BUILD/k: the environment variable is not set"
    assert refused(plan, '[[boot]]\nkernel = "$BUILD/k"\n') == words


GOOD = '[defaults]\nkernel = "k"\n\n[[boot]]\nname = "one"\n\n[[boot]]\nname = "two"\n'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("timeot = 5", "9: timeot: unknown key; did you mean timeout? There are name, kernel,"),
        ("colour = 5", "9: colour: unknown key; there are name, kernel, mode,"),
        ("timeout = 0", "9: timeout: 0: give seconds, above 0"),
        ("timeout = nan", "9: timeout: nan: give seconds"),
        ("timeout = true", "9: timeout: True: give seconds"),
        ("rng_seed = -1", "9: rng_seed: -1: give a number from 0 to 0xffffffffffffffff"),
        ('rng_seed = "1"', "9: rng_seed: '1': give a number"),
        ("slice = true", "9: slice: give a time, as in 500"),
        ('slice = "1s"', "9: slice: 1s: give a time from 1ns to 10ms"),
        ("slice = 0", "9: slice: 0: give a time from 1ns to 10ms"),
        ('schedule_seed = "1"', "9: schedule_seed: '1': give a number"),
        ("maxvcpus = 0", "9: maxvcpus: 0: give a number of vcpus, from 1 to 128"),
        ("maxvcpus = 1\nvcpus = 2", "9: maxvcpus: 1: fewer than the 2 vcpus that are online"),
        ("vcpus = 0", "9: vcpus: 0: give a number of vcpus, from 1 to 128"),
        ('vcpus = "2"', "9: vcpus: '2': give a number"),
        ('quiet_timeout = "1m"', "9: quiet_timeout: '1m': give seconds"),
        ('kernel = "none"', "9: kernel: "),
        ('kernel = "d"', "9: kernel: "),
        ("kernel = 5", "9: kernel: give a string"),
        ("kernel = []", "9: kernel: the list is empty"),
        ('rootfs = "k"', "9: rootfs: "),
        ('efi_root = "k"', "9: efi_root: "),
        ('initrd = "k"\ninit = "k"', "10: init: initrd in line 9 says another; give one"),
        ('initrd = "k"\nbusybox = "k"', "10: busybox: initrd in line 9 says another; give one"),
        ('mode = "pv"\nentry = "pv"', "10: entry: mode says the same; give one of the two"),
        ('mode = "hvm"', "9: mode: 'hvm': give one of auto, pv, pvh"),
        ('memory = "lots"', "9: memory: lots: give a number and a unit"),
        ('expect = "("', "9: expect: '(' is no regular expression: missing )"),
        ('expect = [\n  "good",\n  "(",\n]', "9: expect: '(' is no regular expression"),
        ('expect = {patern = "x"}', "9: expect: patern: unknown key; did you mean pattern? There"),
        ('mode = ["pv", "pvh", "pv"]', "9: mode: 'pv' is there twice"),
        ('cmdline = "quiet', "9: a string has no quote at its end"),
        ("cmdline = 'quiet", "9: a string has no quote at its end"),
        ('expect = [\n  "good",\n  "bad,\n]', "11: a string has no quote at its end"),
        ('cmdline = """quiet\n', "9: a string has no quote at its end"),
        ('expect = {send = "x"}', "9: expect: give a table with pattern and, maybe, send"),
        ('expect = ""', "9: expect: '' matches before anything is printed; give what"),
        ('reject = ".*"', "9: reject: '.*' matches before anything is printed"),
        ('expect = "\\S"', "9: in double quotes, \\ begins an escape: write regular expressions"),
        ('reject = ["a", "*"]', "9: reject: '*' is no regular expression"),
        ('exit = "halt"', "9: exit: 'halt': give one of poweroff, reboot,"),
        ('on_suspend = "save"', "9: on_suspend: 'save': give one of end, resume, cancel"),
        ('tolerate = "panic"', "9: tolerate: 'panic': give one of bug, oops, lockup, warning"),
        ('environment = {"A B" = "x"}', "9: environment: 'A B' is no variable's name"),
        ('environment = {A = "\\""}', "9: environment: A: give a string without quotes"),
        ('cmdline = "a\\u0000"', "9: cmdline: a string cannot have a NUL"),
        ('\n# a comment\n\nmode = "x"', "12: mode: 'x'"),
        ("[[boot]]\nname = \"one\"", "10: name: another boot is named 'one'"),
        ("[[boot]]\nname = \"-one\"", "10: name: another boot is named 'one'"),
        ("[[boat]]\n", "9: boat: unknown; a plan has [[boot]] and [defaults]"),
        ("timeout 5", "9: Expected '=' after a key"),
        ("timeout = 5\ntimeout = 5", "10: the key is there already"),
        ("[job]\n[job]", "10: there are several: begin each with [[job]]"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_line_and_key(plan, line, problem):
    assert refused(plan, f"{GOOD}{line}\n").startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", " there is no [[boot]]"),
        ("boot = 5\n", "1: boot: give tables: [[boot]]"),
        ("[[boot]]\n", "1: boot: kernel is missing"),
        ('[defaults]\nmode = "x"\n[[boot]]\nkernel = "k"\n', "2: mode: 'x': give one of"),
        ('[defaults]\nname = "x"\n[[boot]]\n', "2: name: unknown key"),
        ('[defaults]\nkernel = "k"\n', " there is no [[boot]]"),
    ],
)
def test_what_is_wrong_with_the_whole(plan, text, problem):
    assert refused(plan, text).startswith(problem)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_plan(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_plan(tmp_path / "binary.toml")


def test_a_table_without_a_file_names_the_key_as_its_writer_does(tmp_path):
    (tmp_path / "k").write_bytes(b"kernel")
    with pytest.raises(UsageError, match=r"^QUIET_TIMEOUT: -1: give seconds"):
        make_boots({"kernel": ["k"], "quiet_timeout": -1}, tmp_path, spell=str.upper)


@pytest.mark.parametrize(
    ("name", "slug"), [("a b", "a-b"), ("a/../b", "a-..-b"), ("..", "boot"), ("6.1 pv", "6.1-pv")]
)
def test_a_name_as_a_file(name, slug, tmp_path):
    assert Boot(name, tmp_path).slug == slug


BASE = """
[defaults]
kernel = "k"
initrd = "k2"
timeout = 50
reject = "bad"
rng_seed = 1

[[boot]]
name = "base"
mode = ["pv", "pvh"]
memory = "64M"
rng_seed = 2
expect = "up"
timeout = 5
"""


def test_a_table_with_from_has_the_machine_of_each_boot_of_another(plan, tmp_path):
    pv, pvh, a_pv, a_pvh = plan(f'{BASE}[[boot]]\nname = "a"\nfrom = "base"\nexpect = "it"')
    assert (pv.name, pvh.name, a_pv.name, a_pvh.name) == ("base pv", "base pvh", "a pv", "a pvh")
    assert pv.is_origin
    assert pvh.is_origin
    assert a_pvh == Boot(
        name="a pvh",
        kernel=tmp_path / "k",
        mode="pvh",
        memory=64 << 20,
        initrd=tmp_path / "k2",
        expect=(Step("it"),),
        reject=("bad",),
        rng_seed=2,
        timeout=50.0,
        origin=pvh,
    )


def test_from_may_name_one_boot_of_a_table_and_lists_make_more(plan):
    more = '[[boot]]\nname = "a"\nfrom = "base pv"\nschedule_seed = [1, 2]'
    *_, one, two = plan(f"{BASE}{more}")
    assert [(boot.name, boot.origin.name) for boot in (one, two)] == [
        *(("a seed1", "base pv"), ("a seed2", "base pv"))
    ]
    first, other, *_ = plan(f"{BASE}{more}")
    assert first.is_origin
    assert not other.is_origin


@pytest.mark.parametrize(
    ("value", "read"), [("1.5", 1.5), ('"1.5s"', 1.5), ('"5"', "5"), ('"a+"', "a+")]
)
def test_where_others_start(plan, value, read):
    (boot,) = plan(f'[[boot]]\nkernel = "k"\nsnapshot = {value}')
    assert boot.snapshot == read


CANNOT_BE_COPIED = {
    "a share": 'share = "d"',
    "a network interface": 'net = "none-but-pcap"',
    "a disk that it writes to": 'disk = ["k", "k2,overlay=o"]',
    "a disk in qcow2": 'disk = "k,format=qcow2"',
}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('from = "base"\nmemory = "1G"', "18: memory: 'base' has booted by then, with its own"),
        (
            'from = "bse"',
            "17: from: there is no [[boot]] 'bse' before this one; did you mean 'base'?",
        ),
        ('name = "a"\nfrom = "a"', "18: from: there is no [[boot]] 'a' before this one"),
        ("from = 5", "17: from: give a string"),
        ('from = "base"', "16: boot: name is missing"),
        ('name = "e"\n[[boot]]\nfrom = "e"', "19: from: 'e' has neither expect nor snapshot, so"),
        *(
            (
                f'name = "o"\nexpect = "up"\n{key}\n[[boot]]\nfrom = "o"',
                f"from: 'o' has {what}, which",
            )
            for what, key in CANNOT_BE_COPIED.items()
        ),
    ],
)
def test_what_is_wrong_with_from(plan, table, problem):
    assert problem in refused(plan, f"{BASE}[[boot]]\n{table}\n")


def test_a_copy_of_one_that_writes_nowhere_is_not_refused(plan):
    plan(
        '[[boot]]\nname = "b"\nkernel = "k"\nexpect = "up"\ndisk = ["k", "k2,ro"]\n'
        '[[boot]]\nname = "a"\nfrom = "b"\n'
    )


def test_busybox_alone_makes_a_shell_for_a_table_that_says_so(plan, tmp_path):
    text = '[defaults]\nbusybox = "k"\n[[boot]]\nkernel = "k"\n[[boot]]\nkernel = "k2"\n'
    plain, shell, made = plan(
        f'{text}busybox = "k2"\n[[boot]]\nname = "made"\nkernel = "k"\ninit = "k2"\n'
    )
    found = [boot.busybox and boot.busybox.name for boot in (plain, shell, made)]
    assert found == [None, "k2", "k"]
    (own,) = plan('[defaults]\ninitrd = "k"\n[[boot]]\nkernel = "k"\nbusybox = "k2"\n')
    assert (own.initrd, own.busybox) == (None, tmp_path / "k2")
