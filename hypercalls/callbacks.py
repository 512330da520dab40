"""Where a PV kernel wants its exceptions, events, system calls and NMIs delivered.

Header: public/callback.h, public/nmi.h. In Xen: arch/x86/pv/callback.c, common/kernel.c.
"""

from __future__ import annotations

from xenemu.abi.arch_x86.xen import (
    FLAT_RING1_CS,
    FLAT_RING3_CS64,
    TI_DPL,
    TI_IF,
    trap_info,
)
from xenemu.abi.callback import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    callback_register,
    callback_unregister,
)
from xenemu.abi.errno import EINVAL, ENOSYS
from xenemu.abi.nmi import (
    XENNMI_register_callback,
    XENNMI_unregister_callback,
    xennmi_callback,
)
from xenemu.abi.xen import Nr
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import COMPAT, INT, PTR, PV, ULONG, Continue, Hypercall, Points, SubOps
from xenemu.hv.scheduler import hypercall_preempt_check
from xenemu.hv.segdesc import fixup_guest_selector
from xenemu.pv.state import Trap, pv
from xenemu.x86 import flags
from xenemu.x86.paging import is_canonical

MAX_TRAPS_AT_ONCE = 256
FIELDS = {
    CALLBACKTYPE_failsafe: "failsafe_callback",
    CALLBACKTYPE_syscall: "syscall_callback",
    CALLBACKTYPE_syscall32: "syscall32_callback",
    CALLBACKTYPE_sysenter: "sysenter_callback",
}


def _check_canonical(address: int) -> None:
    if not is_canonical(address):
        raise XenError(EINVAL, f"{address:#x} is not a canonical address")


def _set_trap_table(current: Current, traps: int) -> None:
    """Set trap handlers up to an entry with address 0; a null pointer clears all of them.

    EFAULT where the table cannot be read, EINVAL for a handler that is not canonical. The entries
    before that are set.
    """
    table = pv(current).traps
    if not traps:
        table.clear()
        return
    size = trap_info.sizeof(current.vcpu.width)
    for _ in range(MAX_TRAPS_AT_ONCE):
        entry = current.read_struct(trap_info, traps)
        if not entry.address:
            return
        _check_canonical(entry.address)
        cs = fixup_guest_selector(entry.cs, current.vcpu.width)
        dpl, masked = entry.flags & TI_DPL, bool(entry.flags & TI_IF)
        table[entry.vector] = Trap(cs, entry.address, dpl, masked)
        traps += size
        if hypercall_preempt_check(current):
            break
    raise Continue(traps)


def _register(
    current: Current, kind: int, address: int, mask_events: bool, cs: int = FLAT_RING3_CS64
) -> None:
    """Register one callback; ENOSYS for a kind that does not exist, EINVAL for its address.

    `cs` is for a 32-bit guest, which chooses its own.
    """
    _check_canonical(address)
    state, width = pv(current), current.vcpu.width
    cs = fixup_guest_selector(cs & 0xFFFF, width)
    if kind == CALLBACKTYPE_event:
        state.event_callback = Trap(cs, address, mask_events=True)
    elif kind == CALLBACKTYPE_nmi:
        flat = FLAT_RING3_CS64 if width == 8 else FLAT_RING1_CS
        state.traps[flags.NMI] = Trap(flat, address, mask_events=True)
    elif _has_callback(kind, width):
        setattr(state, FIELDS[kind], Trap(cs, address, mask_events=mask_events))
    else:
        raise XenError(ENOSYS, f"there is no callback of type {kind}")


def _has_callback(kind: int, width: int) -> bool:
    """Whether `kind` is one of FIELDS that such a guest has: SYSCALL needs 64-bit code."""
    return kind in FIELDS and (width == 8 or kind != CALLBACKTYPE_syscall)


def _set_callbacks(current: Current, *arguments: int) -> None:
    """Register the classic callbacks; one with a non-canonical address is ignored.

    A 64-bit guest passes three addresses. A 32-bit guest passes two, and a code segment before
    each.
    """
    if current.vcpu.width == 4:
        event_cs, event, failsafe_cs, failsafe = arguments
        _register(current, CALLBACKTYPE_event, event, mask_events=False, cs=event_cs)
        _register(current, CALLBACKTYPE_failsafe, failsafe, mask_events=False, cs=failsafe_cs)
        return
    kinds = (CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall)
    for kind, address in zip(kinds, arguments, strict=True):
        if is_canonical(address):
            _register(current, kind, address, mask_events=False)


class CallbackOps(SubOps):
    """Sub-operations of which an unknown one is EINVAL to a 32-bit guest, ENOSYS to others."""

    def __call__(self, current: Current, command: int, pointer: int) -> int | None:
        if command not in self.table and current.vcpu.width == 4:
            raise XenError(EINVAL, f"callback_op has no command {command}")
        return super().__call__(current, command, pointer)


_callback_op = CallbackOps("callback_op")


@_callback_op.sub(CALLBACKOP_register, callback_register)
def register(current: Current, op: callback_register) -> None:
    """Register a callback."""
    masks = bool(op.flags & CALLBACKF_mask_events)
    address = int.from_bytes(op.address, "little")
    if current.vcpu.width == 8:
        _register(current, op.type, address, masks)
    else:  # struct xen_callback: the code segment comes first
        _register(current, op.type, address >> 32, masks, address & 0xFFFF)


@_callback_op.sub(CALLBACKOP_unregister, callback_unregister)
def unregister(current: Current, op: callback_unregister) -> None:
    """Forget the NMI callback; EINVAL for any other."""
    if op.type == CALLBACKTYPE_nmi:
        _unregister_nmi(current)
    elif op.type == CALLBACKTYPE_event or _has_callback(op.type, current.vcpu.width):
        raise XenError(EINVAL, f"callback {op.type} cannot be unregistered")
    else:
        raise XenError(ENOSYS, f"there is no callback of type {op.type}")


def _unregister_nmi(current: Current) -> None:
    pv(current).traps.pop(flags.NMI, None)


_nmi_op = SubOps("nmi_op")


@_nmi_op.sub(XENNMI_register_callback, xennmi_callback)
def register_callback(current: Current, op: xennmi_callback) -> None:
    """Register the vcpu's NMI handler; EINVAL if its address is not canonical."""
    _register(current, CALLBACKTYPE_nmi, op.handler_address, mask_events=True)


@_nmi_op.sub(XENNMI_unregister_callback)
def unregister_callback(current: Current, pointer: int) -> None:
    """Forget the vcpu's NMI handler."""
    _unregister_nmi(current)


set_trap_table = Hypercall(
    Nr.set_trap_table,
    "set_trap_table",
    PV,
    (PTR,),
    _set_trap_table,
    points=Points(0, trap_info, until="address"),
)
set_callbacks = Hypercall(
    Nr.set_callbacks, "set_callbacks", PV, (ULONG, ULONG, ULONG, COMPAT), _set_callbacks
)
callback_op = Hypercall(Nr.callback_op, "callback_op", PV, (INT, PTR), _callback_op)
nmi_op = Hypercall(Nr.nmi_op, "nmi_op", PV, (INT, PTR), _nmi_op, points=Points(1, xennmi_callback))
