"""A hypercall's arguments by name, and the structs that its pointers lead to.

Each fact comes from the place that declares it: arguments from the handler's signature, structs
from `SubOps` and `Points`, fields from `xenemu.abi`. This module adds only which constants a field
may hold. Values are integers, strings, lists and dicts, as JSON has them.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from types import ModuleType
from typing import Final, cast

from xenemu.abi import callback, event_channel, grant_table, memory, nmi, pmu, sched, xen
from xenemu.abi.arch_x86 import xen as arch_xen
from xenemu.abi.hvm import params
from xenemu.abi.layout import Struct
from xenemu.errors import XenError
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Arg, Handler, Hypercall, Points, SubOp, SubOps
from xenemu.hv.state.events import Channel
from xenemu.peek import peek
from xenemu.records import dataclass
from xenemu.x86.paging import describe_entry

Value = int | str | list["Value"] | dict[str, "Value"]

ITEMS: Final = 16  # of an array, to be decoded
TEXT: Final = 64  # bytes of a text, to be shown
PREEMPTED: Final = xen.MMU_UPDATE_PREEMPTED
UNNAMED: Final = frozenset(("command", "pointer"))  # arguments that every family has
COMMAND: Final = 7  # in mmu_update's `ptr`


@dataclass(frozen=True)
class Names:
    """The constants of a module that begin alike: a value is one of them, or bits of several."""

    module: ModuleType
    prefix: str
    bits: bool = False

    def of(self, value: int) -> Value:
        """The name of a value; a number that has none stays a number."""
        names = _constants(self)
        if not self.bits or value in names:
            return names.get(value, value)
        known = [name for bit, name in sorted(names.items()) if bit and value & bit == bit]
        rest = value & ~sum(bit for bit in names if value & bit == bit)
        return "|".join([*known, *([f"{rest:#x}"] if rest else [])]) if known else value


@cache
def _constants(names: Names) -> dict[int, str]:
    members = {
        value: name
        for name, value in reversed(vars(names.module).items())
        if name.startswith(names.prefix) and isinstance(value, int)
    }
    if names.bits:
        return {value: name for value, name in members.items() if value.bit_count() <= 1}
    return members


DOMAINS: Final = Names(xen, "DOMID_")
VIRQS: Final = {virq.value: f"VIRQ_{virq.name}" for virq in xen.Virq}
DOMID_FIELDS: Final = frozenset(
    ("dom", "domid", "remote_dom", "domain_id", "foreigndom", "source_domid", "dest_domid")
)
# What fields hold, by struct or hypercall.
NAMES: Final = {
    ("callback_register", "flags"): Names(callback, "CALLBACKF_", bits=True),
    ("callback_register", "type"): Names(callback, "CALLBACKTYPE_"),
    ("callback_unregister", "type"): Names(callback, "CALLBACKTYPE_"),
    ("console_io", "command"): Names(xen, "CONSOLEIO_"),
    ("evtchn_status", "status"): Names(event_channel, "EVTCHNSTAT_"),
    ("gnttab_copy", "flags"): Names(grant_table, "GNTCOPY_", bits=True),
    ("gnttab_map_grant_ref", "flags"): Names(grant_table, "GNTMAP_", bits=True),
    ("mmuext_op", "cmd"): Names(xen, "MMUEXT_"),
    ("nmi_op", "command"): Names(nmi, "XENNMI_"),
    ("sched_shutdown", "reason"): Names(sched, "SHUTDOWN_"),
    ("set_segment_base", "which"): Names(arch_xen, "SEGBASE_"),
    ("update_va_mapping", "flags"): Names(xen, "UVMF_", bits=True),
    ("update_va_mapping_otherdomain", "flags"): Names(xen, "UVMF_", bits=True),
    ("vm_assist", "assist"): Names(xen, "VMASST_TYPE_"),
    ("vm_assist", "command"): Names(xen, "VMASST_CMD_"),
    ("xen_add_to_physmap", "space"): Names(memory, "XENMAPSPACE_"),
    ("xen_add_to_physmap_batch", "space"): Names(memory, "XENMAPSPACE_"),
    ("xen_hvm_param", "index"): Names(params, "HVM_PARAM_"),
    ("xenpmu_op", "command"): Names(pmu, "XENPMU_"),
}
ENTRIES: Final = frozenset(
    (("update_va_mapping", "value"), ("update_va_mapping_otherdomain", "value"))
)


def name_value(owner: str, field: str, value: int) -> Value:
    """What a number in a field of a struct, or an argument of a hypercall, stands for."""
    if (owner, field) in ENTRIES:
        return describe_entry(value)
    if (owner, field) == ("evtchn_bind_virq", "virq"):
        return VIRQS.get(value, value)
    if field == "status" and owner.startswith("gnttab_"):
        return grant_table.GNTST_NAMES.get(value, value)
    if field in DOMID_FIELDS:
        return DOMAINS.of(value)
    names = NAMES.get((owner, field))
    return value if names is None else names.of(value)


def decode_struct(value: Struct) -> dict[str, Value]:
    """The fields of a struct by name; raw bytes in hex."""
    owner = type(value).__name__
    found: dict[str, Value] = {}
    for field in value.layout(8).offsets:
        content = getattr(value, field)
        if isinstance(content, bytes):
            found[field] = content.hex()
        else:
            found[field] = name_value(owner, field, content)
    if isinstance(value, xen.mmu_update):
        found.update(_update(value))
    return found


def _update(value: xen.mmu_update) -> dict[str, Value]:
    """An update's command, which is in the low bits of the address, and what it sets."""
    command = value.ptr & COMMAND
    set_m2p = command == xen.MMU_MACHPHYS_UPDATE
    found: dict[str, Value] = {"ptr": value.ptr & ~COMMAND}
    found["val"] = value.val if set_m2p else describe_entry(value.val)
    if command != xen.MMU_NORMAL_PT_UPDATE:
        found["command"] = Names(xen, "MMU_").of(command)
    return found


def name_args(row: Hypercall, record: CallRecord) -> dict[str, Value]:
    """The arguments of a call by name, with pointers as they are."""
    args = {
        name: name_value(row.name, name, value)
        for name, value in zip(argument_names(row), record.args, strict=False)
    }
    found = _sub_op(row, record)
    if found is not None:
        args[next(iter(args))] = found.name.rstrip("_")
    return args


def call_name(row: Hypercall | None, record: CallRecord) -> str:
    """Which hypercall it was, with its sub-operation: ``sched_op(yield)``."""
    found = row and _sub_op(row, record)
    return f"{record.name}({found.name.rstrip('_')})" if found else record.name


def _sub_op(row: Hypercall, record: CallRecord) -> SubOp | None:
    if not isinstance(row.handler, SubOps) or not record.args:
        return None
    return row.handler.find(record.args[0])


def describe_port(channel: Channel) -> str:
    """What a port is, in a few words."""
    match channel.state:
        case state if state == event_channel.EVTCHNSTAT_virq:
            return VIRQS.get(channel.virq, f"VIRQ {channel.virq}")
        case state if state == event_channel.EVTCHNSTAT_ipi:
            return "ipi"
        case state if state == event_channel.EVTCHNSTAT_interdomain:
            return f"d{channel.remote_domid} port {channel.remote_port}"
        case state if state == event_channel.EVTCHNSTAT_unbound:
            return f"unbound, for d{channel.remote_domid}"
    return "closed"


class Call:
    """A hypercall that begins: what it is, and its arguments with what they lead to.

    `args` has the arguments by name. A pointer to structs appears as the struct, or as a list of
    structs. `name` is the hypercall's name. `op` is the name of its sub-operation, or empty.
    """

    def __init__(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        self.name, self.op = record.name, ""
        self.args: dict[str, Value] = {}
        self._structs: dict[str, list[tuple[int, Struct]]] = {}
        if row is None:
            return
        self.args = name_args(row, record)
        names, points = list(self.args), row.points
        found = _sub_op(row, record)
        if found is not None:
            self.op, points = found.name.rstrip("_"), _points(row, found)
        if points is not None:
            self._follow(current, names[points.pointer], points, record.args)
        if row.name == "mmuext_op":
            commands = (cast(xen.mmuext_op, op).cmd for _, op in self._structs.get("uops", []))
            self.op = " ".join(dict.fromkeys(str(_mmuext_name(cmd)) for cmd in commands))
        if row.name == "console_io" and not record.args[0]:
            self._read_text(current, names[2], record.args[2], record.args[1])

    def _follow(self, current: Current, name: str, points: Points, args: tuple[int, ...]) -> None:
        """Replace a pointer by what it leads to, as far as that can be read."""
        is_array = points.count is not None or points.until
        count = ITEMS if points.until else 1
        if points.count is not None:
            count = args[points.count] & ~PREEMPTED
        size = points.struct.sizeof(current.vcpu.width)
        found: list[tuple[int, Struct]] = []
        for index in range(min(count, ITEMS)):
            at = args[points.pointer] + index * size
            value = _read(current, points.struct, at)
            if value is None:
                break
            found.append((at, value))
            if points.until and not getattr(value, points.until):
                break
        if found:
            self._structs[name] = found
            values: list[Value] = [decode_struct(value) for _, value in found]
            if points.count is not None and count > len(values):
                values.append(f"and {count - len(values)} more")
            self.args[name] = values if is_array else values[0]

    def _read_text(self, current: Current, name: str, at: int, count: int) -> None:
        try:
            text = peek(current, at, min(count, TEXT)).decode("latin-1")
        except XenError:
            return
        self.args[name] = text

    def changes(self, current: Current) -> dict[str, Value]:
        """What the call changed in the structs that it was given: OUT, by argument."""
        changed: dict[str, Value] = {}
        for name, structs in self._structs.items():
            found: list[Value] = []
            for at, before in structs:
                after = _read(current, type(before), at)
                old, new = decode_struct(before), decode_struct(after) if after else {}
                found.append({field: value for field, value in new.items() if value != old[field]})
            if any(found):
                changed[name] = found if isinstance(self.args[name], list) else found[0]
        return changed


def _read(current: Current, struct: type[Struct], at: int) -> Struct | None:
    width = current.vcpu.width
    try:
        return struct.unpack(width, peek(current, at, struct.sizeof(width)))
    except XenError:
        return None


def _mmuext_name(command: int) -> Value:
    name = NAMES["mmuext_op", "cmd"].of(command)
    return name.removeprefix("MMUEXT_") if isinstance(name, str) else name


def argument_names(row: Hypercall) -> tuple[str, ...]:
    """The names of a hypercall's arguments."""
    if isinstance(row.handler, SubOps):
        return row.handler.arguments
    if row.handler is None:
        return row.arguments or tuple(f"arg{n + 1}" for n in range(len(row.args)))
    return _parameters(row.handler, len(row.args))


@cache
def _parameters(handler: Handler, count: int) -> tuple[str, ...]:
    _current, *rest = inspect.signature(handler).parameters.values()
    if rest and rest[0].kind is rest[0].VAR_POSITIONAL:
        return tuple(f"arg{n + 1}" for n in range(count))
    return tuple(parameter.name for parameter in rest)


def _points(row: Hypercall, op: SubOp) -> Points | None:
    """What a sub-operation's pointer leads to; grant operations come in arrays."""
    struct = op.struct or op.shows
    if struct is None:
        return None
    assert isinstance(row.handler, SubOps)
    count = row.handler.arguments.index("count") if "count" in row.handler.arguments else None
    return Points(row.args.index(Arg.PTR), struct, count)


def format_args(args: dict[str, Value], out: dict[str, Value]) -> str:
    """Arguments as strace shows them; ``=>`` leads to what the call changed at a pointer."""
    return ", ".join(
        ("" if name in UNNAMED else f"{name}=")
        + format_value(value, name)
        + (f" => {format_value(out[name])}" if name in out else "")
        for name, value in args.items()
    )


def format_value(value: Value, name: str = "") -> str:
    """A decoded value as strace shows it: ``{port=3}``, ``[{...}, ...]``, names, numbers.

    Long numbers are in hex, unless they are times or counts by their `name`.
    """
    match value:
        case dict():
            return "{" + ", ".join(f"{k}={format_value(v, k)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(format_value, value)) + "]"
        case int():
            is_amount = name.endswith("_ns") or name.startswith("nr_")
            return str(value) if is_amount or abs(value) <= 0xFFF else hex(value)
        case str() if value.isprintable():
            return value
    return json.dumps(value)
