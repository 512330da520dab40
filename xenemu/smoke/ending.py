"""The end of a console, as far as a person wants to see it after a failure."""

from __future__ import annotations

from typing import Final

from xenemu.smoke.verdict import PANIC, PATTERNS

LINES: Final = 20
BEFORE: Final = 10  # lines before the kernel's first complaint, if that is not among the `LINES`
AT_MOST: Final = 80
COMPLAINTS: Final = (PANIC, *(pattern for _, _, pattern in PATTERNS))


def console_end(log: str) -> list[str]:
    """The last lines of a console; those of a kernel's last words, and what led to them.

    A panic prints more lines than a person would be shown otherwise, none of which says what the
    guest did before.
    """
    lines = log.splitlines()
    earliest = max(0, len(lines) - AT_MOST + BEFORE)
    complaint = next((i for i in range(earliest, len(lines)) if _complains(lines[i])), len(lines))
    return lines[max(0, min(len(lines) - LINES, complaint - BEFORE)) :]


def _complains(line: str) -> bool:
    return any(pattern.search(line) for pattern in COMPLAINTS)
