"""Load the native shim, then Unicorn behind it; declare what they share.

The order matters: the shim's functions replace Unicorn's only if the dynamic linker meets
them first.
"""

from __future__ import annotations

import ctypes as C
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xenemu.errors import EngineError

UNICORN_VERSION = "2.1.4"

EXIT_EXCEPTION, EXIT_SOFT_INT, EXIT_UNDEFINED, EXIT_SYSCALL, EXIT_CPUID = range(5)
EXIT_VMCALL, EXIT_RDMSR, EXIT_WRMSR, EXIT_IN, EXIT_OUT = range(5, 10)
ANSWERED, REFUSED, NATIVE = range(3)
INTERRUPT_VIRQ, INTERRUPT_NMI = 0x100, 0x200
MAX_OVERRIDES = 512


class State(C.Structure):
    """`G` of shim.c."""

    _fields_ = (
        ("left", C.c_int64),
        ("end", C.c_int64),
        ("skipped_ns", C.c_int64),
        ("rflags", C.c_uint64),
        ("rflags_dirty", C.c_uint32),
        ("flush", C.c_uint32),
        ("stop", C.c_uint32),
        ("kind", C.c_uint32),
        ("vector", C.c_uint32),
        ("error", C.c_uint32),
        ("answer", C.c_uint32),
        ("native", C.c_uint32),
        ("port", C.c_uint32),
        ("size", C.c_uint32),
        ("value", C.c_uint64),
        ("code", C.c_void_p),
        ("written", C.c_void_p),
        ("frames", C.c_uint64),
        ("enter", C.c_void_p),
        ("exits", C.c_uint64),
        ("flushes", C.c_uint64),
        ("fills", C.c_uint64),
        ("blocks_translated", C.c_uint64),
        ("code_frames", C.c_uint64),
        ("uc", C.c_void_p),
        ("cpu", C.c_void_p),
        ("env", C.c_void_p),
        ("ports", C.c_void_p),
        ("populated", C.c_void_p),
        ("hole", C.c_uint64),
        ("overrides", C.c_uint64),
        ("override_gfn", C.c_uint64 * MAX_OVERRIDES),
        ("override_maddr", C.c_uint64 * MAX_OVERRIDES),
        ("upcall_pending", C.c_void_p),
        ("callback_vector", C.c_int32),
        ("apic_vector", C.c_int32),
        ("apic_accepted", C.c_int32),
    )


class Shim:
    """The loaded shim: its functions with their types, and Unicorn's module."""

    def __init__(self) -> None:
        if "unicorn" in sys.modules:
            raise EngineError("unicorn was imported before xenemu: import xenemu.cpu first")
        found = version("unicorn")
        if found != UNICORN_VERSION:
            raise EngineError(
                f"xenemu needs unicorn {UNICORN_VERSION}, not {found}: "
                f"pip install unicorn=={UNICORN_VERSION}"
            )
        # PyDLL: the GIL is kept, because the calls come back into Python all the time.
        library = C.PyDLL(str(_library()), mode=C.RTLD_GLOBAL)
        import unicorn  # noqa: PLC0415 (after the shim, see the module's docstring)
        from unicorn.unicorn_py3 import unicorn as binding  # noqa: PLC0415

        self.unicorn: Any = unicorn
        self.uclib: Any = binding.uclib
        self.uclib.uc_hook_add.argtypes = None
        self._library = library

        bind = self._function("shim_bind", C.c_char_p, C.c_void_p)
        missing = bind(self.uclib._handle)
        if missing:
            raise EngineError(f"this build of unicorn lacks {missing.decode()}")
        self.attach = self._function("shim_attach", None, C.c_void_p)
        self.run = self._function("shim_run", C.c_int, C.c_uint64)
        self.invalidate = self._function("shim_invalidate", None, C.c_uint64)
        self.sync_rflags = self._function("shim_sync_rflags", None)
        self.reload_rflags = self._function("shim_reload_rflags", None)
        self.flush_page = self._function("shim_flush_page", None, C.c_uint64)
        self.request_interrupt = self._function("shim_request_interrupt", None, C.c_uint32)
        self.stop_now = self._function("shim_stop_now", None)
        self.hook_interrupt: int = self._function("shim_hook_interrupt", C.c_void_p)()
        self.hook_undefined: int = self._function("shim_hook_undefined", C.c_void_p)()
        self.state = State.from_address(self._function("shim_state", C.c_void_p)())

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
