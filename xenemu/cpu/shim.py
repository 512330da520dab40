"""Load the native shim, then Unicorn behind it; declare what they share.

The order matters: the shim's functions replace Unicorn's only if the dynamic linker meets
them first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xenemu.errors import EngineError

UNICORN_VERSION = "2.1.4"

EXIT_EXCEPTION, EXIT_SOFT_INT, EXIT_UNDEFINED, EXIT_SYSCALL, EXIT_CPUID = range(5)
EXIT_VMCALL, EXIT_RDMSR, EXIT_WRMSR, EXIT_IN, EXIT_OUT, EXIT_SYSENTER = range(5, 11)
EXIT_READ_CR8, EXIT_WRITE_CR8, EXIT_LOAD, EXIT_STORE, PAUSE, DELIVERY, PRICES = range(11, 18)
ANSWERED, REFUSED, NATIVE = range(3)
INTERRUPT_VIRQ, INTERRUPT_NMI = 0x100, 0x200
STOP_HYPERVISOR, STOP_DEBUGGER = 1, 2
GAVE_UP = -1
STOP_BREAKPOINT, STOP_WATCHPOINT, STOP_FAULT = 1, 2, 3
MAX_OVERRIDES = 512


class State(ctypes.Structure):
    """`G` of shim.h."""

    _fields_ = (
        ("left", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("skipped_ns", ctypes.c_int64),
        ("rflags", ctypes.c_uint64),
        ("rflags_dirty", ctypes.c_uint32),
        ("flush", ctypes.c_uint32),
        ("stop", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("vector", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("answer", ctypes.c_uint32),
        ("by_iret", ctypes.c_uint32),
        ("native", ctypes.c_uint32),
        ("port", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
        ("prices", ctypes.c_uint32 * PRICES),
        ("code", ctypes.c_void_p),
        ("written", ctypes.c_void_p),
        ("frames", ctypes.c_uint64),
        ("ram", ctypes.c_void_p),
        ("enter", ctypes.c_void_p),
        ("look", ctypes.c_void_p),
        ("looked_ns", ctypes.c_int64),
        ("random", ctypes.c_uint64),
        ("exits", ctypes.c_uint64),
        ("flushes", ctypes.c_uint64),
        ("fills", ctypes.c_uint64),
        ("blocks_translated", ctypes.c_uint64),
        ("code_frames", ctypes.c_uint64),
        ("uncounted", ctypes.c_uint64),
        ("uc", ctypes.c_void_p),
        ("cpu", ctypes.c_void_p),
        ("env", ctypes.c_void_p),
        ("tcg", ctypes.c_void_p),
        ("undefined_rip", ctypes.c_uint64),
        ("undefined_bits", ctypes.c_uint32),
        ("undefined_bytes", ctypes.c_uint8),
        ("undefined_code", ctypes.c_uint8 * 15),
        ("ports", ctypes.c_void_p),
        ("populated", ctypes.c_void_p),
        ("hole", ctypes.c_uint64),
        ("ones", ctypes.c_uint64),
        ("apic", ctypes.c_uint64),
        ("overrides", ctypes.c_uint64),
        ("override_gfn", ctypes.c_uint64 * MAX_OVERRIDES),
        ("override_maddr", ctypes.c_uint64 * MAX_OVERRIDES),
        ("upcall_pending", ctypes.c_void_p),
        ("callback_vector", ctypes.c_int32),
        ("apic_vector", ctypes.c_int32),
        ("apic_accepted", ctypes.c_int32),
        ("delivered_vector", ctypes.c_uint32),
        ("delivered_kind", ctypes.c_uint32),
        ("stepping", ctypes.c_uint32),
        ("debug_stop", ctypes.c_uint32),
        ("debug_access", ctypes.c_uint32),
        ("debug_address", ctypes.c_uint64),
        ("caught_faults", ctypes.c_uint32),
        ("let_fault", ctypes.c_uint64),
    )


class Shim:
    """The loaded shim: its functions with their types, and Unicorn's module."""

    def __init__(self) -> None:
        if "unicorn" in sys.modules:
            raise EngineError("unicorn was imported before xenemu: import xenemu.cpu first")
        # PyDLL: the GIL is kept, because the calls come back into Python all the time.
        library = ctypes.PyDLL(str(_library()), mode=ctypes.RTLD_GLOBAL)
        import unicorn  # noqa: PLC0415 (after the shim, see the module's docstring)
        from unicorn.unicorn_py3 import unicorn as binding  # noqa: PLC0415

        self.unicorn: Any = unicorn
        found = self.unicorn.__version__
        if found != UNICORN_VERSION:
            raise EngineError(
                f"xenemu needs unicorn {UNICORN_VERSION}, not {found}: "
                f"pip install unicorn=={UNICORN_VERSION}"
            )
        self.uclib: Any = binding.uclib
        self._library = library

        bind = self._function("shim_bind", ctypes.c_char_p, ctypes.c_void_p)
        missing = bind(self.uclib._handle)
        if missing:
            raise EngineError(f"this build of unicorn lacks {missing.decode()}")
        self.attach = self._function("shim_attach", None, ctypes.c_void_p)
        self.run = self._function("shim_run", ctypes.c_int, ctypes.c_uint64)
        self.invalidate = self._function("shim_invalidate", None, ctypes.c_uint64)
        self.sync_rflags = self._function("shim_sync_rflags", None)
        self.reload_rflags = self._function("shim_reload_rflags", None)
        self.flush_page = self._function("shim_flush_page", None, ctypes.c_uint64)
        self.request_interrupt = self._function("shim_request_interrupt", None, ctypes.c_uint32)
        self.set_dr7 = self._function("shim_set_dr7", None, ctypes.c_uint64)
        self.came_from = self._function("shim_came_from", ctypes.c_uint64)
        self.last_words = self._function("shim_last_words", ctypes.c_char_p)
        self.map_beyond_ram = self._function(
            "shim_map_beyond_ram", ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64
        )
        self.set_breakpoints = self._function(
            "shim_set_breakpoints", ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint
        )
        self.watch = self._function(
            "shim_watch", ctypes.c_bool, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int
        )
        self.unwatch_all = self._function("shim_unwatch_all", None)
        self.hook_interrupt: int = self._function("shim_hook_interrupt", ctypes.c_void_p)()
        self.hook_undefined: int = self._function("shim_hook_undefined", ctypes.c_void_p)()
        self.state = State.from_address(self._function("shim_state", ctypes.c_void_p)())

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = getattr(self._library, name)
        function.restype = result
        function.argtypes = arguments
        return function  # type: ignore[no-any-return]


def _library() -> Path:
    here = Path(__file__).parent
    for candidate in sorted(here.glob("_shim*.so")):
        return candidate
    raise EngineError(f"the engine's native shim is not built in {here}: run `pip install .`")


_loaded: list[Shim] = []


def load() -> Shim:
    """The process's one shim, loaded on first use."""
    if not _loaded:
        _loaded.append(Shim())
    return _loaded[0]
