"""The personalities of PV guests."""

from __future__ import annotations

from xenemu.hv.domain import Current
from xenemu.hv.personality import Personality
from xenemu.pv.audit import audit
from xenemu.pv.builder import start_vcpu
from xenemu.pv.entry import Pv32Exits, PvExits
from xenemu.pv.paging import translate, translate32
from xenemu.pv.state import pv


def _address_space(current: Current) -> int:
    state = pv(current)
    return state.kernel_root if state.kernel_mode else state.user_root


def _hand_over(current: Current) -> None:
    """A PV vcpu has nothing in the CPU but its registers."""


PV64 = Personality(
    environment="pv64",
    translate=translate,
    start=start_vcpu,
    leave=_hand_over,
    enter=_hand_over,
    exits=PvExits,
    address_space=_address_space,
    audit=audit,
)

PV32 = Personality(
    environment="pv32",
    translate=translate32,
    start=start_vcpu,
    leave=_hand_over,
    enter=_hand_over,
    exits=Pv32Exits,
    address_space=_address_space,
    audit=audit,
)
