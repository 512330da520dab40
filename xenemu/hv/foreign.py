"""Whose memory a memory-management hypercall is about: a domU's own, or nobody's.

A domU may name dom0 and the other domUs of its host, but has no rights to them.

In Xen: common/page_alloc.c (get_pg_owner), common/domain.c (rcu_lock_domain_by_any_id and others),
include/xsm/dummy.h.
"""

from __future__ import annotations

from xenemu.abi.errno import EPERM, ESRCH
from xenemu.abi.xen import DOMID_IO, DOMID_SELF, DOMID_XEN
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.hv.state.domain import DOM0


def get_pg_owner(current: Current, domid: int) -> int:
    """The domain that a "foreign domain" argument means: DOMID_SELF, or truly another one.

    ESRCH if there is no such domain, or if the caller names itself by its own id.
    """
    if domid == DOMID_SELF:
        return current.domain.domid
    if domid in (DOMID_IO, DOMID_XEN):
        return domid
    if domid == current.domain.domid:
        raise XenError(ESRCH, f"d{domid} must call itself DOMID_SELF here")
    return _existing(current, domid)


def check_target(current: Current, domid: int) -> None:
    """Refuse what only the owner of the memory, or a domain with rights to it, may do: EPERM."""
    if domid != current.domain.domid:
        raise XenError(EPERM, f"d{current.domain.domid} has no rights to d{domid}'s memory")


def domain_by_any_id(current: Current, domid: int) -> int:
    """The domain of an argument that may be DOMID_SELF; ESRCH if there is no such domain."""
    return current.domain.domid if domid == DOMID_SELF else _existing(current, domid)


def remote_domain_by_id(current: Current, domid: int) -> int:
    """The domain of an argument that must be another; EPERM for oneself, ESRCH if there is none."""
    if domid == current.domain.domid:
        raise XenError(EPERM, f"d{domid} is the caller itself")
    return _existing(current, domid)


def _existing(current: Current, domid: int) -> int:
    if domid != DOM0 and domid not in current.domain.peers:
        raise XenError(ESRCH, f"there is no domain {domid}")
    return domid
