"""Load the C shim, then Unicorn after it; learn from it what C and Python share.

The order matters. The shim's functions replace Unicorn's only if the dynamic linker meets the
shim's first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xenemu.errors import EngineError
from xenemu.hv import calls, page_info
from xenemu.pv.state import SHARED

UNICORN_VERSION = "2.1.4"

NAMES = ("uint8", "uint16", "int32", "uint32", "int64", "uint64")
C_TYPES: dict[str, Any] = {f"{name}_t": getattr(ctypes, f"c_{name}") for name in NAMES}


class _Member(ctypes.Structure):
    """A row of the shim's table of a struct: native/bind.c, `struct member`."""

    name: bytes
    type: bytes
    offset: int
    count: int
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
        ("offset", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
    )


class _Constant(ctypes.Structure):
    """A row of the shim's table of constants: native/bind.c, `struct constant`."""

    name: bytes
    value: int
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int64))


def struct_of(name: str, members: Iterable[_Member]) -> type[ctypes.Structure]:
    """Make the struct that C has, of its table; EngineError if ctypes lays it out otherwise."""
    *rows, end = members
    fields: list[tuple[str, Any]] = []
    for row in rows:
        kind = C_TYPES.get(row.type.decode(), ctypes.c_void_p)  # all others are pointers
        fields.append((row.name.decode(), kind * row.count if row.count > 1 else kind))
    made = type(name, (ctypes.Structure,), {"_fields_": tuple(fields)})
    places = [getattr(made, field).offset for field, _ in fields] + [ctypes.sizeof(made)]
    if places != [row.offset for row in (*rows, end)]:
        raise EngineError(f"the shim's struct {name} is laid out as ctypes does not know")
    return made


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
        self.store = self._function("shim_store", None)
        self.load = self._function("shim_load", None)
        self.switch_tlb = self._function("shim_switch_tlb", None, ctypes.c_uint, ctypes.c_uint)
        self.translate = self._function(
            "shim_translate", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_bool
        )
        self.tlbs_expose_table = self._function("shim_tlbs_expose_table", ctypes.c_bool)
        self.fills_as_unicorn = self._function("shim_fills_as_unicorn", ctypes.c_bool)
        self.load_fpu = self._function("shim_load_fpu", None, ctypes.c_char_p)
        self.update_mode = self._function("shim_update_mode", None)
        self.flush_page = self._function("shim_flush_page", None, ctypes.c_uint64)
        self.request_interrupt = self._function("shim_request_interrupt", None, ctypes.c_uint32)
        self.set_dr7 = self._function("shim_set_dr7", None, ctypes.c_uint64)
        self.take_l1 = self._function(
            "shim_take_l1", ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p
        )
        self.drop_l1 = self._function("shim_drop_l1", ctypes.c_int, ctypes.c_uint64)
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
        self.forget_blocks = self._function("shim_forget_blocks", None)
        self.turn_to_blocks_of = self._function("shim_turn_to_blocks_of", None, ctypes.c_uint32)
        self.unwatch_all = self._function("shim_unwatch_all", None)
        self.hook_interrupt: int = self._function("shim_hook_interrupt", ctypes.c_void_p)()
        self.hook_undefined: int = self._function("shim_hook_undefined", ctypes.c_void_p)()
        self.env = self._function("shim_env", ctypes.c_void_p)
        self.cpu = self._function("shim_cpu", ctypes.c_void_p)
        # What C and Python share, by subject: see shared.def.
        self.clock = self._shared("clock")
        self.exit = self._shared("exit")
        self.vcpu = self._shared("vcpu")
        self.registers = self._shared("registers")
        self.physical = self._shared("physical")
        self.lane = self._shared("lane")
        self.debug = self._shared("debug")
        self.counters = self._shared("counters")
        self.coverage = self._shared("coverage")
        self.block: Any = type(self._shared("block"))
        self.notes = self._shared("notes")
        self.note: Any = type(self._shared("note"))
        self._check_record("page_info", page_info.places(), page_info.RECORD.size)
        vcpu_places = {name: (8 * at, 8) for at, name in enumerate(SHARED)}
        self._check_record("pv_vcpu", vcpu_places, 8 * len(SHARED))
        self._check_record("call_record", calls.places(), calls.RECORD.size)
        rows = _rows(self._function("shim_constants", ctypes.POINTER(_Constant))())
        self.constants: Any = SimpleNamespace(**{row.name.decode(): row.value for row in rows})

    def _shared(self, name: str) -> Any:
        """A struct that is shared, in place."""
        place = ctypes.c_void_p()
        describe = self._function(f"shim_{name}", ctypes.POINTER(_Member), ctypes.c_void_p)
        made = struct_of(name, _members(describe(ctypes.byref(place))))
        return made.from_address(place.value or 0)

    def _check_record(self, name: str, places: dict[str, tuple[int, int]], size: int) -> None:
        """Compare a record that the model declares (as in hv/page_info.py) with the shim's."""
        describe = self._function(f"shim_{name}", ctypes.POINTER(_Member))
        made: Any = struct_of(name, _members(describe()))
        fields = [(field, getattr(made, field)) for field, _ in made._fields_]
        found = {field: (place.offset, place.size) for field, place in fields}
        if (found, ctypes.sizeof(made)) != (places, size):
            raise EngineError(f"the shim's struct {name} is not the model's")

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = getattr(self._library, name)
        function.restype = result
        function.argtypes = arguments
        return function  # type: ignore[no-any-return]


def _rows(table: Any) -> Iterator[Any]:
    """The rows of a table of the shim's, but for the last, which has no name."""
    return takewhile(lambda row: row.name is not None, (table[n] for n in count()))


def _members(table: Any) -> list[_Member]:
    """A table of a struct, with its last row, which has the struct's size."""
    rows = [*_rows(table)]
    return [*rows, table[len(rows)]]


def _library() -> Path:
    here = Path(__file__).parent
    for candidate in sorted(here.glob("_shim*.so")):
        return candidate
    raise EngineError(f"the engine's C shim is not built in {here}: run `pip install .`")


_loaded: list[Shim] = []


def load() -> Shim:
    """The process's one shim, loaded on first use."""
    if not _loaded:
        _loaded.append(Shim())
    return _loaded[0]
