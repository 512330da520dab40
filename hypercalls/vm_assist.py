"""Assists: behaviour of Xen's that a guest turns on.

Header: public/xen.h (VMASST_*)
In Xen: common/kernel.c (do_vm_assist), include/asm-x86/config.h (the valid masks)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.errno import EINVAL, ENOSYS
from xenemu.abi.features import XENFEAT_auto_translated_physmap
from xenemu.abi.xen import (
    Nr,
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, Hypercall
from xenemu.hv.state.domain import Domain

HVM_VALID: Final = frozenset({VMASST_TYPE_runstate_update_flag})
PV32_VALID: Final = HVM_VALID | {
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_writable_pagetables,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_architectural_iopl,
}
PV64_VALID: Final = PV32_VALID | {VMASST_TYPE_m2p_strict}


def set_assist(current: Current, command: int, assist: int) -> int:
    """Turn an assist on or off; EINVAL: no such assist; ENOSYS: no such command."""
    domain = current.domain
    if assist not in valid_assists(domain):
        raise XenError(EINVAL, f"there is no assist {assist} for this guest")
    if command == VMASST_CMD_enable:
        domain.vm_assist |= 1 << assist
    elif command == VMASST_CMD_disable:
        domain.vm_assist &= ~(1 << assist)
    else:
        raise XenError(ENOSYS, f"vm_assist has no command {command}")
    return 0


def valid_assists(domain: Domain) -> frozenset[int]:
    """The assists that such a guest may turn on."""
    if domain.features >> XENFEAT_auto_translated_physmap & 1:
        return HVM_VALID
    return PV64_VALID if domain.width == 8 else PV32_VALID


vm_assist = Hypercall(Nr.vm_assist, "vm_assist", ALL, (INT, INT), set_assist)
