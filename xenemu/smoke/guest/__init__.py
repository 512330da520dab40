"""A guest for a program to talk to, in a process of its own: what `import xenemu` offers.

`client` has the guest as the program sees it, with `memory`, `kernel` and `asking` for its parts.
`serving` and `looking` are in the guest's process, and answer in `messages`.
"""

from __future__ import annotations

from xenemu.errors import (
    EngineError,
    FitError,
    ImageError,
    NoSuchName,
    OutputError,
    Unmapped,
    UsageError,
    XenemuError,
)
from xenemu.kernel import LoadedModule, Task
from xenemu.linux import LogLine
from xenemu.smoke.guest.asking import Xenstore
from xenemu.smoke.guest.client import Guest, GuestFailed, Snapshot, boot, close_all
from xenemu.smoke.guest.kernel import Damaged, Enumerator, KernelView, Object
from xenemu.smoke.guest.memory import Memory, Symbols
from xenemu.smoke.guest.messages import Found
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict

__all__ = [
    "Damaged",
    "EngineError",
    "Enumerator",
    "Finding",
    "FitError",
    "Found",
    "Guest",
    "GuestFailed",
    "ImageError",
    "KernelView",
    "LoadedModule",
    "LogLine",
    "Memory",
    "NoSuchName",
    "Object",
    "OutputError",
    "Result",
    "Snapshot",
    "Symbols",
    "Task",
    "Unmapped",
    "UsageError",
    "Verdict",
    "XenemuError",
    "Xenstore",
    "boot",
    "close_all",
]
