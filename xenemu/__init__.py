"""A Xen hypervisor in a process: boots PV and PVH guests on a software CPU.

::

    import xenemu

    with xenemu.boot("vmlinuz", mode="pv", cmdline="console=hvc0") as guest:
        version = guest.expect(r"Linux version (\\S+)").groups[0]

What is imported from here comes from `xenemu.smoke.guest`, when it is first asked for: the command
line has no need of it. docs/python.md has all of it.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own, which takes 5 ms to import

if TYPE_CHECKING:
    from xenemu.smoke.guest import (
        Damaged,
        EngineError,
        Enumerator,
        Finding,
        FitError,
        Found,
        Guest,
        GuestFailed,
        ImageError,
        KernelView,
        LoadedModule,
        LogLine,
        Memory,
        NoSuchName,
        Object,
        OutputError,
        Result,
        Snapshot,
        Symbols,
        Task,
        Unmapped,
        UsageError,
        Verdict,
        XenemuError,
        Xenstore,
        boot,
    )

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
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 (commands do without)

    found = globals()[name] = getattr(import_module("xenemu.smoke.guest"), name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
