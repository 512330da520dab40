"""hypercalls/toolstack.py"""

from __future__ import annotations

import pytest

from fakes import DOMID, make_current
from hypercalls import toolstack
from xenemu.abi.errno import E2BIG, EACCES, EFAULT, EINVAL, EOPNOTSUPP, EPERM, ESRCH
from xenemu.abi.xen import DOMID_INVALID, DOMID_IO, DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.dispatch import Hypercall

ARGUMENT, NOWHERE = 0x20000, 1 << 30
VERSION = {
    toolstack.platform_op: toolstack.XENPF_INTERFACE_VERSION,
    toolstack.sysctl: toolstack.XEN_SYSCTL_INTERFACE_VERSION,
    toolstack.domctl: toolstack.XEN_DOMCTL_INTERFACE_VERSION,
    toolstack.paging_domctl_cont: toolstack.XEN_DOMCTL_INTERFACE_VERSION,
}
GETDOMAININFO = 5


def errno_of(row: Hypercall, *args: int, command: int = 0, version: int = 0, domid: int = 0) -> int:
    """Call with a struct at ARGUMENT, and check that it is as before."""
    current = make_current()
    current.write_uint(ARGUMENT, 4, command)
    current.write_uint(ARGUMENT + 4, 4, version or VERSION.get(row, 0))
    current.write_uint(ARGUMENT + 8, 2, domid)
    before = bytes(current.domain.memory.bytes)
    assert row.handler is not None
    with pytest.raises(XenError) as error:
        row.handler(current, *args)
    assert bytes(current.domain.memory.bytes) == before
    return error.value.errno


@pytest.mark.parametrize("row", VERSION, ids=lambda row: row.name)
def test_the_argument_must_be_readable(row: Hypercall) -> None:
    assert errno_of(row, NOWHERE) == EFAULT


@pytest.mark.parametrize("row", [toolstack.platform_op, toolstack.sysctl], ids=lambda row: row.name)
def test_the_version_counts_before_the_right(row: Hypercall) -> None:
    assert errno_of(row, ARGUMENT, version=VERSION[row] + 1) == EACCES
    assert errno_of(row, ARGUMENT) == EPERM == row.answer


@pytest.mark.parametrize(
    ("command", "domid", "errno"),
    [
        (GETDOMAININFO, 0, EPERM),
        (GETDOMAININFO, DOMID, EPERM),
        (GETDOMAININFO, 7, ESRCH),
        (GETDOMAININFO, DOMID_SELF, ESRCH),
        (toolstack.XEN_DOMCTL_createdomain, 7, EPERM),
        (toolstack.XEN_DOMCTL_gdbsx_guestmemio, 7, EPERM),
        (toolstack.XEN_DOMCTL_assign_device, DOMID_IO, EPERM),
        (toolstack.XEN_DOMCTL_assign_device, DOMID_INVALID, ESRCH),
        (toolstack.XEN_DOMCTL_test_assign_device, DOMID_INVALID, EPERM),
        (toolstack.XEN_DOMCTL_vm_event_op, DOMID_IO, ESRCH),
    ],
)
def test_a_domctl_names_a_domain(command: int, domid: int, errno: int) -> None:
    assert errno_of(toolstack.domctl, ARGUMENT, command=command, domid=domid) == errno


def test_only_one_domctl_is_continued() -> None:
    row, command = toolstack.paging_domctl_cont, toolstack.XEN_DOMCTL_shadow_op
    assert errno_of(row, ARGUMENT, command=command) == EPERM
    assert errno_of(row, ARGUMENT, command=command, domid=7) == ESRCH
    assert errno_of(row, ARGUMENT, command=command, version=1) == EOPNOTSUPP
    assert errno_of(row, ARGUMENT, command=GETDOMAININFO) == EOPNOTSUPP


@pytest.mark.parametrize(
    ("domid", "count", "buffers", "errno"),
    [
        (0, 3, ARGUMENT, E2BIG),
        (0, 2, NOWHERE, EFAULT),
        (0, 0, NOWHERE, EINVAL),
        (0, 2, ARGUMENT, EINVAL),
        (DOMID, 1, ARGUMENT, EPERM),
        (7, 1, ARGUMENT, ESRCH),
    ],
)
def test_a_device_model_is_dom0s(domid: int, count: int, buffers: int, errno: int) -> None:
    assert errno_of(toolstack.dm_op, domid, count, buffers) == errno
