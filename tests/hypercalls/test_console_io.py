"""hypercalls/console_io.py"""

from __future__ import annotations

import pytest

from fakes import make_current
from hypercalls.console_io import PER_CALL, PIECE, console_io
from xenemu.abi.errno import EFAULT, EPERM
from xenemu.abi.xen import CONSOLEIO_read, CONSOLEIO_write
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue
from xenemu.hv.state.domain import OUTPUT_LIMIT

BUFFER = 0x20000


@pytest.fixture
def current() -> Current:
    return make_current()


def call(current: Current, command: int, count: int, buffer: int) -> int | None:
    assert console_io.handler is not None
    return console_io.handler(current, command, count, buffer)


def test_written_bytes_are_shown_as_they_are(current: Current) -> None:
    current.write(BUFFER, b"\x1b[1mhi\r\n")
    assert call(current, CONSOLEIO_write, 8, BUFFER) == 0
    assert current.domain.output == b"\x1b[1mhi\r\n"


def test_pieces_before_a_fault_are_shown(current: Current) -> None:
    end = len(current.domain.memory.bytes)
    current.write(end - PIECE, b"x" * PIECE)
    with pytest.raises(XenError) as refused:
        call(current, CONSOLEIO_write, 2 * PIECE, end - PIECE)
    assert refused.value.errno == EFAULT
    assert current.domain.output == b"x" * PIECE


def test_a_long_write_goes_on_in_a_continuation(current: Current) -> None:
    with pytest.raises(Continue) as again:
        call(current, CONSOLEIO_write, PER_CALL + 5, BUFFER)
    assert again.value.new_args == (CONSOLEIO_write, 5, BUFFER + PER_CALL)
    assert len(current.domain.output) == PER_CALL


def test_much_output_stops_the_cpu_so_that_it_is_shown(current: Current) -> None:
    current.domain.output += bytes(OUTPUT_LIMIT - 1)
    call(current, CONSOLEIO_write, 1, BUFFER)
    assert current.cpu.stopped  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [CONSOLEIO_read, 2, 0xFFFFFFFF])
def test_all_else_is_the_hardware_domains(current: Current, command: int) -> None:
    current.write(BUFFER, b"untouched")
    with pytest.raises(XenError) as refused:
        call(current, command, 9, BUFFER)
    assert refused.value.errno == EPERM
    assert current.read(BUFFER, 9) == b"untouched"
    assert current.domain.output == b""
