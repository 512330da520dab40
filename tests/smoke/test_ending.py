"""Which lines of a console a failure shows."""

from __future__ import annotations

import pytest

from xenemu.smoke.ending import AT_MOST, BEFORE, LINES, console_end

PANIC = "    1.000000  [    0.900000] Kernel panic - not syncing: VFS"
OOPS = "    1.000000  [    0.900000] BUG: unable to handle page fault for address: 0"


def console(before, words, after):
    """Numbered lines, with the kernel's words after so many and before so many."""
    lines = [f"before {number}" for number in range(before)] + list(words)
    return lines + [f"after {number}" for number in range(after)]


def shown(lines):
    return console_end("".join(f"{line}\n" for line in lines))


def test_the_last_lines_of_a_console_without_complaints():
    assert shown([]) == []
    assert shown(console(5, [], 0)) == console(5, [], 0)
    assert shown(console(50, [], 0)) == console(50, [], 0)[-LINES:]


@pytest.mark.parametrize("words", [[PANIC], [OOPS], [OOPS, "registers", PANIC]])
def test_what_led_to_the_first_complaint(words):
    for after in (0, 2, LINES, AT_MOST - 2 * BEFORE):
        lines = console(50, words, after)
        first = min(50 - BEFORE, len(lines) - LINES)
        assert shown(lines) == lines[first:], after
    assert shown(console(3, words, 30)) == console(3, words, 30)


def test_no_more_than_a_person_reads():
    lines = console(50, [PANIC], 1000)
    assert shown(lines) == lines[-LINES:]
    assert len(shown(console(500, [PANIC], AT_MOST - BEFORE - 1))) == AT_MOST
