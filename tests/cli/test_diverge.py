"""`xenemu diverge`: where two recorded runs part, to the instruction."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from guests.build import ENVIRONMENTS, build, guests
from tinyguest import BLOCK, POWEROFF, kernel, say, shutdown, wait_until

# mov $2000, %ecx; dec %ecx; jnz; rdrand %rbx; mov %rbx, -8(%rsp); xor %ebx, %ebx;
# mov $3000, %ecx; dec %ecx; jnz; mov -8(%rsp), %rcx; and $0x7f, %ecx; inc %ecx; dec %ecx; jnz
SEEDED = bytes.fromhex(
    "b9d0070000 ffc9 75fc 480fc7f3 48895c24f8 31db"
    "b9b80b0000 ffc9 75fc 488b4c24f8 83e17f ffc1 ffc9 75fc"
)
YIELD = BLOCK.replace(b"\xbf\1", b"\xbf\0")
RDRAND_AFTER = 1 + 2 * 2000  # instructions


@pytest.fixture
def call(tmp_path):
    def call(*words):
        command = [sys.executable, "-m", "xenemu", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, cwd=tmp_path
        )

    return call


@pytest.fixture
def record(call, tmp_path):
    """Record a run of a guest made of this code, or of one that has been built."""

    def record(name: str, code: bytes | None, *options: object) -> None:
        if code is not None:
            (tmp_path / "kernel").write_bytes(kernel(code))
        result = call("run", "kernel", "--memory", "64M", "--record", name, *options)
        assert result.returncode == 0, result.stderr

    return record


def found(result) -> str:
    assert result.stderr == b""
    return result.stdout.decode()


def test_the_instruction_is_found_that_began_it(record, call) -> None:
    code = SEEDED + say(b"done\n") + shutdown(POWEROFF)
    record("a", code)
    record("b", code, "--rng-seed", 9)
    result = call("diverge", "a", "b")
    text = found(result)
    assert result.returncode == 9
    assert f"They part after {RDRAND_AFTER} instructions, at " in text
    assert ": rdrandq %rbx" in text
    assert re.search(r"Registers that differ \(a, b\)\n    rbx +[0-9a-f]{16}  [0-9a-f]{16}\n", text)
    assert "Memory was the same in both before that." in text


def test_the_same_run_twice(record, call) -> None:
    record("a", say(b"one\n") + shutdown(POWEROFF))
    record("b", None)
    result = call("diverge", "a", "b")
    assert result.returncode == 0
    assert "The two runs are the same" in found(result)


def test_a_run_that_ends_where_the_other_goes_on(record, call, tmp_path) -> None:
    code = say(b"one\n") + wait_until(50_000_000) + say(b"two\n") + shutdown(POWEROFF)
    record("a", code)
    record("b", None, "--expect", "one")
    text = found(call("diverge", "a", "b"))
    assert re.search(r"  b  the run is over", text)
    assert re.search(r"ways\n  a  poweroff: .*\n  b  expected: every expectation is met\n", text)


def test_a_guest_that_may_be_restarted_is_refused(record, call) -> None:
    record("a", shutdown(POWEROFF), "--on-reboot", "restart")
    result = call("diverge", "a", "a")
    assert (result.returncode, result.stdout) == (7, b"")
    assert b"a: this is of several boots" in result.stderr


def test_two_kernels_are_compared_by_lines_and_hypercalls(call, tmp_path) -> None:
    for name, end in (("a", say(b"two\n")), ("b", YIELD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel").write_bytes(
            kernel(say(b"one\n") + end + say(b"three\n") + shutdown(POWEROFF))
        )
    for name in ("a", "b"):
        call("run", f"{name}/kernel", "--memory", "64M", "--record", f"{name}/rec")
    result = call("diverge", "a/rec", "b/rec")
    text = found(result)
    assert result.returncode == 9
    assert "They part" not in text
    assert re.search(r"hypercall that differs\n  a/rec  console_io.*\n  b/rec  sched_op", text)
    assert re.search(r"line that differs\n  a/rec  'two'.*\n  b/rec  'three'", text)
    (tmp_path / "b" / "kernel").unlink()
    assert call("diverge", "a/rec", "b/rec").returncode == 7


def test_vcpus_that_run_in_another_order(record, call, tmp_path) -> None:
    build(guests()["race"], ENVIRONMENTS["pv64"], tmp_path / "kernel")
    record("a", None, "--vcpus", 2, "--slice", "20us")
    record("b", None, "--vcpus", 2, "--slice", "20us", "--schedule-seed", 3)
    result = call("diverge", "a", "b")
    text = found(result)
    assert result.returncode == 9
    assert "They part after" in text
    assert re.search(r"  a  vcpu \d at .*\n  b  vcpu \d at ", text)
