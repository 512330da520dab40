"""Faults to plant into the hypervisor, to see that the audit and the fuzzer notice them.

A fault is a piece of a function's source, and what is there instead. It is planted into this
process alone, for as long as the context lasts, and in every place that has imported the function.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from types import FunctionType

from fuzz import recipes_any, recipes_pv, recipes_pvh, recipes_vcpus
from fuzz.recipes import Recipe


@dataclass(frozen=True)
class Fault:
    """What is wrong then, in which function, and the recipe that should find it soon."""

    what: str
    where: str  # module:function
    source: str
    instead: str
    recipe: Recipe
    environment: str = "pv64"
    vcpus: int = 1


FAULTS = (
    Fault(
        "a grant mapped for host and device, unmapped for the device, keeps its pin for that",
        "xenemu.hv.grant_map:unmap_grant",
        "    if kinds:\n",
        "    if kinds and not (mapping.flags & KINDS == KINDS and kinds == GNTMAP_device_map):\n",
        recipes_any.grants,
    ),
    Fault(
        "the bits that entries of L2 to L4 may not have are not looked at",
        "xenemu.hv.validation:Validation._get_page_from_entry",
        "not entry & self.rules.disallowed(level)\n            and ",
        "",
        recipes_pv.tree,
    ),
    Fault(
        "a port is connected to one that does not wait, such as itself",
        "xenemu.hv.event_channel:bind_interdomain",
        "remote.state != EVTCHNSTAT_unbound or ",
        "",
        recipes_any.ports,
    ),
    Fault(
        "a port that is closed leaves its peer, of the same domain, connected",
        "xenemu.hv.event_channel:close",
        "peer.state = EVTCHNSTAT_unbound",
        "pass",
        recipes_any.ports,
        "pvh32",
    ),
    Fault(
        "a table whose validation is preempted is said to be one entry further",
        "xenemu.hv.validation:Validation._promote_table",
        "self._leave_partial(mfn, index)",
        "self._leave_partial(mfn, index + isinstance(stop, Restart))",
        recipes_pv.tree,
    ),
    Fault(
        "a table that is completed keeps the reference of its partial validation",
        "xenemu.hv.validation:Validation._promote_table",
        "            self.put_page(mfn)\n",
        "",
        recipes_pv.tree,
        "pv32",
    ),
    Fault(
        "an L1 entry that becomes writable takes no reference for that",
        "xenemu.hv.pagetype:Frames.mod_l1_entry",
        "& L1_REFERENCE_BITS",
        "& (L1_REFERENCE_BITS & ~RW)",
        recipes_pv.table,
        "pv32",
    ),
    Fault(
        "a new LDT keeps the frames of the one before",
        "xenemu.pv.descriptors:set_ldt",
        "    drop_ldt(current)\n",
        "",
        recipes_pv.descriptors,
    ),
    Fault(
        "a frame that goes back to the heap is still in the machine-to-physical table",
        "xenemu.hv.frame_table:FrameTable.put_page",
        "self.set_m2p(mfn, INVALID_M2P_ENTRY)",
        "pass",
        recipes_pv.exchange,
        "pv32",
    ),
    Fault(
        "a frame that is put elsewhere in the physmap stays where it was, too",
        "hypercalls.physmap:add",
        "p2m.remove(before)",
        "pass",
        recipes_pvh.physmap,
        "pvh64",
    ),
    Fault(
        "a node of the xenstore is removed without those below it",
        "xenemu.dom0.xenstore_tree:Store.rm",
        "in self._subtree(conn, path, tx):",
        "in [path]:",
        recipes_any.store_tree,
    ),
    Fault(
        "a local APIC interrupts what it serves with a vector of the same class",
        "xenemu.pvh.lapic:Lapic.pending_vector",
        "vector & 0xF0 <= max(self.regs[TASKPRI], urgent) & 0xF0",
        "vector & 0xF0 < max(self.regs[TASKPRI], urgent) & 0xF0",
        recipes_pvh.local_apic,
        "pvh64",
    ),
    Fault(
        "a local APIC's timer runs on when it is stopped",
        "xenemu.pvh.lapic_glue:set_timer",
        "timers.cancel(key)",
        "pass",
        recipes_pvh.local_apic,
        "pvh32",
    ),
    Fault(
        "an event does not wake the vcpu that waits for it",
        "xenemu.hv.event_2l:_select",
        "waking.wake(domain, vcpu)",
        "pass",
        recipes_any.waiting,
    ),
    Fault(
        "the FIFO ABI keeps the pages of its control blocks when it ends",
        "xenemu.hv.event_fifo:destroy",
        "in fifo.control_blocks.values():",
        "in ():",
        recipes_any.fifo,
        "pvh64",
    ),
    Fault(
        "a vcpu whose user's page tables are refused keeps those of its kernel",
        "xenemu.pv.context:_take_roots",
        "            frames.put_page_and_type(kernel)\n",
        "",
        recipes_vcpus.initialise,
        vcpus=2,
    ),
    Fault(
        "an INIT leaves the timer of the local APIC armed",
        "xenemu.pvh.lapic_glue:_reset",
        "    set_timer(current, vcpu)\n",
        "",
        recipes_vcpus.interrupts,
        "pvh64",
        vcpus=2,
    ),
)


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """Have a fault in the hypervisor."""
    function = _function(fault.where)
    sound = function.__code__
    function.__code__ = _changed(function, fault.source, fault.instead).__code__
    try:
        yield
    finally:
        function.__code__ = sound


def _function(where: str) -> FunctionType:
    module, _, name = where.partition(":")
    function = reduce(getattr, name.split("."), importlib.import_module(module))
    assert isinstance(function, FunctionType), where
    return function


def _changed(function: FunctionType, piece: str, instead: str) -> FunctionType:
    """The function, compiled from its source with one piece of it changed."""
    source = inspect.getsource(function)
    assert source.count(piece) == 1, f"{function.__qualname__} has {piece!r} {source.count(piece)}x"
    indented = "if True:\n" if source[0].isspace() else ""
    tree = ast.parse(indented + source.replace(piece, instead))
    (definition,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    definition.decorator_list = []
    names = dict(function.__globals__)
    flags = __future__.annotations.compiler_flag
    exec(compile(tree, inspect.getfile(function), "exec", flags), names)
    changed = names[function.__name__]
    assert isinstance(changed, FunctionType)
    return changed
