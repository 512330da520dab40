"""What tests of grants share: entries as a guest writes them, and refusals that change nothing."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable

import pytest

from fakes import DOMID, FIRST_GUEST_FRAME, make_current
from hypercalls.grant_table_op import grant_table_op
from xenemu.abi.grant_table import GTF_permit_access, grant_entry_v1, grant_entry_v2
from xenemu.abi.layout import Struct
from xenemu.hv import grant_table
from xenemu.hv.current import Current
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.hv.grant_table import GrantError
from xenemu.hv.state.domain import Domain
from xenemu.x86.paging import Maddr, Mfn

HEAP = range(6, 16)  # frames below the guest's
ARGUMENT = 0x20000
PAGE, TABLE, OTHER = (Mfn(FIRST_GUEST_FRAME + n) for n in (20, 21, 22))
STRANGER = 7
DOM0 = 0
REF = 9


def grant(
    domain: Domain, ref: int, frame: int, flags: int = GTF_permit_access, to: int = DOMID
) -> None:
    """Write a grant of a whole frame, as the guest does, in the table's version."""
    v2 = grant_entry_v2(flags, to, 0, 0, frame)
    v1 = grant_entry_v1(flags, to, frame)
    grant_table.write_entry(domain, ref, v1 if domain.grants.version == 1 else v2)


def set_status(domain: Domain, ref: int, status: int) -> None:
    """Write into a status, as a guest may: the flags, or the status frame of version 2."""
    grants = domain.grants
    if grants.version == 1:
        entry = grant_table.read_entry(domain, ref)
        entry.flags |= status
        grant_table.write_entry(domain, ref, entry)
    else:
        domain.memory.write_uint(Maddr((grants.status_frames[0] << 12) + 2 * ref), 2, status)


def state(domain: Domain) -> object:
    """All that a refusal must leave alone, but for which handle is next."""
    frames, grants = domain.frames, domain.grants
    return copying.deepcopy(
        (
            domain.memory.read(Maddr(0), len(domain.memory.bytes)),
            (bytes(domain.memory.page_info), list(frames.heap), domain.pages),
            (grants.version, grants.frames, grants.status_frames, grants.active),
            (grants.maptrack.mappings, domain.p2m),
        )
    )


def refused(domain: Domain, status: int, action: Callable[[], object]) -> None:
    """The action gives this status, and changes nothing."""
    before = state(domain)
    with pytest.raises(GrantError) as error:
        action()
    assert error.value.status == status
    assert state(domain) == before


def granting(current: Current) -> Current:
    """Give a domain a heap, a grant table, and a grant REF of PAGE to itself."""
    current.domain.frames.add_to_heap(HEAP)
    grant_table.grow(current.domain, 1)
    grant(current.domain, REF, PAGE)
    return current


def granting_current(width: int) -> Current:
    """A domain that grants itself PAGE by REF, with TABLE as an empty L1 table."""
    current = granting(make_current(width))
    current.domain.frames.get_page_and_type(TABLE, DOMID, PGT_l1_page_table)
    return current


def raw_call(current: Current, command: int, pointer: int, count: int) -> int:
    assert grant_table_op.handler is not None
    return grant_table_op.handler(current, command, pointer, count) or 0


def call(current: Current, command: int, *ops: Struct) -> list[Struct]:
    """Call with an array, and read it back."""
    kind, size = type(ops[0]), ops[0].sizeof(current.vcpu.width)
    places = [ARGUMENT + index * size for index in range(len(ops))]
    for place, op in zip(places, ops, strict=True):
        current.write_struct(place, op)
    assert raw_call(current, command, ARGUMENT, len(ops)) == 0
    return [current.read_struct(kind, place) for place in places]


def status(current: Current, command: int, op: Struct) -> int:
    return call(current, command, op)[0].status
