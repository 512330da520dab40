"""gdb/server: who may hold the guest, and what bad packets and vanishing clients do to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import elfwriter
from gdbtools import Client, waiting
from xenemu.cli.expect import Expectations
from xenemu.cli.judge import judge
from xenemu.gdb.channel import listen
from xenemu.gdb.rsp import PACKET_SIZE, Decoder, Packet, encode
from xenemu.gdb.server import Server
from xenemu.hv.debug import RunEnded
from xenemu.machine import Limits
from xenemu.outcome import End, Outcome

INC_RAX = b"\x48\xff\xc0"
SPIN = INC_RAX + b"\xeb\xfb"
# mov $29, %eax; mov $SCHEDOP_shutdown, %edi; push $REASON; mov %rsp, %rsi; syscall
POWEROFF = bytes.fromhex("b81d000000 bf02000000 6a00 4889e6 0f05")
CRASH = POWEROFF.replace(b"\x6a\x00", b"\x6a\x03")
# mov $29, %eax; mov $SCHEDOP_block, %edi; syscall; jmp to the beginning
BLOCK = bytes.fromhex("b81d000000 bf01000000 0f05 ebf2")
UNDEFINED = b"\x0f\x0b"
PC = 16  # rip's number


def write_kernel(path, code):
    notes = elfwriter.Phdr(b"".join(elfwriter.PV_NOTES), elfwriter.PT_NOTE, paddr=0, vaddr=0)
    path.write_bytes(elfwriter.elf([elfwriter.Phdr(code, memsz=0x2000), notes]))
    return path


@pytest.fixture
def held(tmp_path):
    """Start a PV guest of a few instructions that waits for gdb."""

    def start(code, *options, **more):
        return waiting(write_kernel(tmp_path / "kernel", code), "--memory", "64M", *options, **more)

    return start


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = write_kernel(tmp_path_factory.mktemp("gdb") / "kernel", SPIN)
    with waiting(path, "--memory", "64M") as guest:
        yield Client(guest.address)


def rip(client):
    return int.from_bytes(bytes.fromhex(client.ask(b"p%x" % PC).decode()), "little")


def stopped(answer):
    return answer[:3]


# Holding and going on.


def test_the_guest_waits_at_its_first_instruction(held):
    with held(SPIN) as guest:
        client = Client(guest.address)
        assert stopped(client.ask(b"?")) == b"T05"
        start = rip(client)
        assert stopped(client.ask(b"vCont;s:1")) == b"T05"
        assert rip(client) == start + len(INC_RAX)


@pytest.mark.parametrize("code", [SPIN, BLOCK], ids=["running", "idle"])
def test_ctrl_c_stops_the_guest(held, code):
    with held(code) as guest:
        client = Client(guest.address)
        client.send(encode(b"vCont;c"))
        client.send(b"\x03")
        assert stopped(client.next()) == b"T02"


def test_a_range_is_stepped_to_its_end(held):
    with held(INC_RAX * 100 + SPIN) as guest:
        client = Client(guest.address)
        start = rip(client)
        assert stopped(client.ask(b"vCont;r%x,%x:1" % (start, start + 300))) == b"T05"
        assert rip(client) == start + 300


def test_a_breakpoint_says_that_it_is_one(held):
    with held(INC_RAX * 3 + SPIN) as guest:
        client = Client(guest.address)
        place = rip(client) + 3
        assert client.ask(b"Z0,%x,1" % place) == b"OK"
        assert b";swbreak:;" in client.ask(b"vCont;c")
        assert client.ask(b"z0,%x,1" % place) == b"OK"
        assert client.ask(b"Z1,%x,1" % (place + 3)) == b"OK"
        assert b";hwbreak:;" in client.ask(b"vCont;c")


def test_memory_is_unchanged_by_breakpoints(held):
    with held(INC_RAX * 3 + SPIN) as guest:
        client = Client(guest.address)
        place = rip(client)
        client.ask(b"Z0,%x,1" % (place + 3))
        client.ask(b"vCont;c")
        assert client.ask(b"m%x,9" % place) == (INC_RAX * 3).hex().encode()


def test_code_that_gdb_writes_runs(held):
    with held(INC_RAX * 3 + SPIN) as guest:
        client = Client(guest.address)
        place = rip(client)
        client.ask(b"Z0,%x,1" % (place + 9))
        assert client.ask(b"M%x,3:48ffc8" % (place + 3)) == b"OK"  # dec %rax
        assert client.ask(b"X%x,3:" % (place + 6) + b"\x48\xff\xc8") == b"OK"
        client.ask(b"vCont;c")
        assert client.ask(b"p0") == b"ff" * 8  # 1 - 1 - 1


# How it ends.


def test_a_power_off_ends_gdbs_session(held):
    with held(POWEROFF) as guest:
        client = Client(guest.address)
        assert client.ask(b"vCont;c") == b"W00"
        assert client.next() is None
        guest.finish()
        assert guest.process.returncode == 0


@pytest.mark.parametrize(("code", "exit_code"), [(CRASH, 4), (UNDEFINED, 5)])
def test_a_crash_can_be_looked_at_before_it_is_over(held, code, exit_code):
    with held(code) as guest:
        client = Client(guest.address)
        said = client.ask(b"vCont;c")
        assert said[:1] == b"O"
        assert b"xenemu: " in bytes.fromhex(said[1:].decode())
        while (said := client.next())[:1] == b"O":
            pass
        assert stopped(said) == b"T06"
        assert len(client.ask(b"g")) > 100
        assert client.ask(b"vCont;c") == b"W%02x" % exit_code
        _, err = guest.finish()
        assert guest.process.returncode == exit_code
        assert b"Registers of vcpu 0" in err


def test_kill_ends_the_run(held):
    with held(SPIN) as guest:
        client = Client(guest.address)
        client.send(encode(b"k"))
        _, err = guest.finish()
        assert guest.process.returncode == 0
        assert b"stopped, exit 0: killed by gdb; virtual time" in err


def test_a_detached_guest_runs_on_alone(held):
    with held(INC_RAX + POWEROFF) as guest:
        client = Client(guest.address)
        client.ask(b"Z0,%x,1" % (rip(client) + 3))
        assert client.ask(b"D") == b"OK"
        _, err = guest.finish()
        assert b"poweroff, exit 0" in err


def test_a_second_gdb_may_come_after_the_first_has_detached(held):
    with held(SPIN) as guest:
        first = Client(guest.address)
        assert first.ask(b"D") == b"OK"
        second = Client(guest.address)
        assert stopped(second.ask(b"?")) == b"T05"


# Clients that are not as they should be.


def test_a_client_that_vanishes_leaves_the_guest_held(held):
    with held(INC_RAX * 3 + POWEROFF) as guest:
        first = Client(guest.address)
        first.ask(b"vCont;s:1")
        place = rip(first)
        first.ask(b"Z0,%x,1" % (place + 3))
        first.close()
        second = Client(guest.address)
        assert rip(second) == place
        assert second.ask(b"vCont;c") == b"W00"  # the first one's breakpoint is gone, too
        _, err = guest.finish()
        assert b"gdb went away without detaching; the guest is held for another" in err


def test_a_client_that_vanishes_while_the_guest_runs_has_it_held(held):
    with held(SPIN) as guest:
        first = Client(guest.address)
        first.send(encode(b"vCont;c"))
        first.close()
        second = Client(guest.address)
        assert stopped(second.ask(b"?")) == b"T05"
        place = rip(second)
        assert rip(second) == place


def test_a_second_client_is_turned_away_and_the_first_goes_on(held):
    with held(SPIN) as guest:
        first = Client(guest.address)
        second = Client(guest.address, quiet=False)
        assert second.next() == b"E.another gdb is attached; detach it first"
        assert second.next() is None
        assert stopped(first.ask(b"?")) == b"T05"


def test_a_signal_ends_a_run_that_gdb_holds(held):
    with held(SPIN) as guest:
        Client(guest.address)
        guest.process.send_signal(signal.SIGINT)
        guest.finish()
        assert guest.process.returncode == 128 + signal.SIGINT


def test_a_run_that_no_gdb_comes_to_ends_with_its_timeout(held):
    with held(SPIN, "--timeout", "0.5") as guest:
        out, err = guest.finish()
        assert (guest.process.returncode, out) == (6, b"")
        assert b"timeout, exit 6: no gdb let the guest go within 0.5 s; virtual time 0.000 s" in err


class Waits:
    """A person who only waits, while the clock goes on by a minute each time."""

    def __init__(self):
        self.now, self.allowed = 0.0, []

    def wait(self, descriptors, phase, seconds, alone):
        self.allowed.append((phase, seconds, alone))
        self.now += 60
        return len(self.allowed) < 9

    def check(self):
        return None


@pytest.mark.parametrize("attached", [True, False])
def test_time_counts_where_no_gdb_is(attached):
    person = Waits()
    limits = Limits(90, lambda: person.now)
    listener = listen(":0")
    server = Server.__new__(Server)
    server.person, server.limits, server.listener = person, limits, listener
    server.target = SimpleNamespace(pc=0)
    server._channel = SimpleNamespace(fileno=listener.fileno) if attached else None
    server._going, server._listen = None, lambda held: None
    with pytest.raises(RunEnded) as ended:
        server._hold()
    listener.close()
    if attached:  # as long as he likes
        assert ended.value.outcome.end is End.STOPPED
        assert set(person.allowed) == {("held by gdb", None, False)}
        assert not limits.expired()
    else:
        assert ended.value.outcome.end is End.TIMEOUT
        assert person.allowed == [("waiting for gdb", 90, True), ("waiting for gdb", 30, True)]


def test_what_the_guest_did_before_is_no_reason_for_gdbs_end():
    witness = SimpleNamespace(pattern=", in a loop in f", doubts=lambda outcome, headlines: False)
    for held, reason in ((True, "killed by gdb"), (False, "killed by gdb, in a loop in f")):
        outcome = Outcome(End.STOPPED, "killed by gdb", held=held)
        assert judge(outcome, Expectations([]), witness).reason == reason


# Packets that are not as they should be.


@pytest.mark.parametrize(
    "packet",
    [
        b"m", b"m1", b"mzz,4", b"m-1,4", b"M0,2:0", b"M0,2:000000", b"Mx", b"X0,4:abc", b"p",
        b"pzz", b"pffff", b"P0", b"P0=zz", b"P0=00", b"Gzz", b"Z", b"Z0", b"Z0,zz,1",
        b"Z0,10000000000000000,1", b"vCont;",
        b"vCont;x", b"vCont;rzz", b"vCont;s:zz", b"qXfer:features:read:target.xml",
        b"qXfer:features:read::0,zz", b"vFile:pread:", b"vFile:open:zz,0,0", b"vFile:pread:zz,1,0",
        b"qRcmd,zz", b"qSearch:memory:1", b"qThreadExtraInfo,zz", b"Tzz", b"Hgzz", b"szz", b"czz",
    ],
)  # fmt: skip
def test_a_malformed_packet_is_an_error_and_changes_nothing(session, packet):
    before = session.ask(b"g")
    assert session.ask(packet)[:1] == b"E"
    assert session.ask(b"g") == before


@pytest.mark.parametrize(
    "packet", [b"", b"qCRC:0,1", b"Qfoo", b"vFoo", b"qXfer:auxv:read::0,10", b"Z9,0,1", b"!"]
)
def test_an_unknown_packet_is_not_supported(session, packet):
    assert session.ask(packet) == b""


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (b"M1,1:00", b"is not mapped"),
        (b"Z2,1000,0", b"1 to 4096"),
        (b"Hg9", b"no thread 9"),
        (b"M10000000000000000,1:00", b"is no address"),
        (b"qSearch:memory:0;ffffffffffff;abc", b"is not mapped"),
        (b"P11=00", b"has 4 bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(session, packet, words):
    answer = session.ask(packet)
    assert answer[:2] == b"E."
    assert words in answer


@pytest.mark.parametrize("vaddr", [1, 1 << 64])
def test_memory_that_cannot_be_read_is_an_error_by_number(session, vaddr):
    assert session.ask(b"m%x,4" % vaddr) == b"E0e"


def test_a_damaged_packet_is_asked_for_again(held):
    with held(SPIN) as guest:
        client = Client(guest.address, quiet=False)
        client.send(b"$?#00")
        client.send(b"$?#3f")
        assert stopped(client.next()) == b"T05"
        assert client.heard.startswith(b"-+$")


def test_a_packet_that_arrived_damaged_is_sent_again(held):
    with held(SPIN) as guest:
        client = Client(guest.address, quiet=False)
        first = client.ask(b"?")
        client.send(b"-")
        assert client.next() == first


def test_a_packet_that_is_repeated_for_want_of_an_acknowledgement_is_answered_once(held):
    with held(SPIN) as guest:
        client = Client(guest.address, quiet=False)
        client.send(b"$qC#b4" * 3)
        assert client.next() == b"QC1"
        assert client.ask(b"?")[:3] == b"T05"


def test_a_packet_that_is_too_long_is_refused(session):
    assert session.ask(b"m" * (PACKET_SIZE + 100))[:2] == b"E."
    assert stopped(session.ask(b"?")) == b"T05"


def test_too_many_breakpoints_are_refused(held):
    with held(SPIN) as guest:
        client = Client(guest.address)
        answers = {client.ask(b"Z0,%x,1" % (0x1000 + n)) for n in range(256)}
        assert answers == {b"OK"}
        assert client.ask(b"Z0,2000,1") == b"E.too many breakpoints or watchpoints"


def test_a_large_read_is_answered_in_part(session):
    start = rip(session)
    assert len(session.ask(b"m%x,%x" % (start, 1 << 20))) <= PACKET_SIZE


def test_a_monitor_command_is_answered_in_the_open(session):
    session.send(encode(b"qRcmd," + b"info notes".hex().encode()))
    said = session.next()
    assert said[:1] == b"O"
    assert b"Xen " in bytes.fromhex(said[1:].decode())
    assert session.next() == b"OK"


def test_memory_is_searched(session):
    start = rip(session)
    pattern = SPIN[3:5]
    assert session.ask(b"qSearch:memory:%x;100;" % start + pattern) == b"1,%x" % (start + 3)
    assert session.ask(b"qSearch:memory:%x;100;" % start + b"nowhere") == b"0"


# At a pipe.


class Pipe:
    """A gdb that has started xenemu."""

    def __init__(self, path):
        command = [sys.executable, "-m", "xenemu", "run", path, "--memory", "64M", "--gdb", "stdio"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        self._decoder, self._events = Decoder(), []

    def tell(self, payload):
        self.process.stdin.write(encode(payload))

    def ask(self, payload):
        self.tell(payload)
        return self.next()

    def next(self):
        while not any(isinstance(event, Packet) for event in self._events):
            self._events += self._decoder.feed(self.process.stdout.read(1 << 16))
        while not isinstance(event := self._events.pop(0), Packet):
            pass
        return event.payload

    def finish(self):
        """The pipe ends; the exit code, and the lines of standard error."""
        _, errors = self.process.communicate()
        return self.process.returncode, errors.decode().splitlines()


@pytest.mark.parametrize(
    ("code", "last"),
    [(SPIN, b"?"), (SPIN, b"vCont;c"), (SPIN, b"vCont;r0,1:1"), (SPIN, b"D"), (BLOCK, b"vCont;c")],
    ids=["held", "running", "stepped", "alone", "idle"],
)
def test_the_run_ends_with_the_pipe(tmp_path, code, last):
    gdb = Pipe(write_kernel(tmp_path / "kernel", code))
    assert stopped(gdb.ask(b"?")) == b"T05"
    gdb.tell(last)
    if last == b"D":
        assert gdb.next() == b"OK"
    exit_code, errors = gdb.finish()
    assert (exit_code, len(errors)) == (0, 1), errors
    assert errors[0].startswith("xenemu: stopped, exit 0: gdb went away; virtual time")


# Where it listens.


def test_it_listens_on_loopback_unless_told_otherwise(held):
    with held(SPIN) as guest:
        assert guest.address.startswith("127.0.0.1:")


def test_a_unix_socket(held, tmp_path):
    path = tmp_path / "gdb"
    with held(SPIN, gdb=f"unix:{path}") as guest:
        assert guest.address == str(path)
        client = Client(guest.address)
        assert stopped(client.ask(b"?")) == b"T05"
        client.send(encode(b"k"))
        guest.finish()
    assert not path.exists()
