"""hypercalls/physdev_op.py"""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, make_current
from hypercalls.physdev_op import physdev_op, physdev_op_compat
from xenemu.abi import physdev as abi
from xenemu.abi.errno import EBUSY, EFAULT, EINVAL, ENODEV, ENOSPC, ENOSYS, EPERM, ESRCH
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import XenError
from xenemu.hv.current import Current
from xenemu.pv.state import PvVcpu, pv
from xenemu.x86.paging import Mfn

ARGUMENT = 0x20000


@pytest.fixture(params=[8, 4])
def current(request: pytest.FixtureRequest) -> Current:
    current = make_current(request.param)
    current.vcpu.arch = PvVcpu(Mfn(0))
    return current


def call(current: Current, command: int, op: Struct) -> int:
    current.write_struct(ARGUMENT, op)
    assert physdev_op.handler is not None
    return physdev_op.handler(current, command, ARGUMENT) or 0


def refused(current: Current, errno: int, command: int, op: Struct) -> None:
    state, counts = repr(current.vcpu.arch), list(current.domain.frames.count)
    with pytest.raises(XenError) as error:
        call(current, command, op)
    assert error.value.errno == errno
    assert repr(current.vcpu.arch) == state
    assert list(current.domain.frames.count) == counts


def test_the_io_privilege_level_is_kept(current: Current) -> None:
    call(current, abi.PHYSDEVOP_set_iopl, abi.physdev_set_iopl(3))
    assert pv(current).iopl == 3
    refused(current, EINVAL, abi.PHYSDEVOP_set_iopl, abi.physdev_set_iopl(4))


def test_the_io_bitmap_is_kept(current: Current) -> None:
    call(current, abi.PHYSDEVOP_set_iobitmap, abi.physdev_set_iobitmap(0x1234, 65536))
    assert (pv(current).io_bitmap, pv(current).io_bitmap_ports) == (0x1234, 65536)
    op = abi.physdev_set_iobitmap(0, 65537)
    refused(current, EINVAL, abi.PHYSDEVOP_set_iobitmap, op)


def test_a_page_for_eoi_marks_is_taken_once(current: Current) -> None:
    op = abi.physdev_pirq_eoi_gmfn(FIRST_GUEST_FRAME)
    assert call(current, abi.PHYSDEVOP_pirq_eoi_gmfn_v2, op) == 0
    assert current.domain.frames.type_count[FIRST_GUEST_FRAME] == 1
    refused(current, EBUSY, abi.PHYSDEVOP_pirq_eoi_gmfn_v1, op)


def test_a_page_for_eoi_marks_must_be_the_guests(current: Current) -> None:
    op = abi.physdev_pirq_eoi_gmfn(5)
    refused(current, EINVAL, abi.PHYSDEVOP_pirq_eoi_gmfn_v2, op)


def test_every_interrupt_needs_an_eoi(current: Current) -> None:
    call(current, abi.PHYSDEVOP_irq_status_query, abi.physdev_irq_status_query(9, 0))
    flags = current.read_struct(abi.physdev_irq_status_query, ARGUMENT).flags
    assert flags == abi.XENIRQSTAT_needs_eoi
    op = abi.physdev_irq_status_query(56, 0)
    refused(current, EINVAL, abi.PHYSDEVOP_irq_status_query, op)


@pytest.mark.parametrize(("domid", "errno"), [(DOMID_SELF, EPERM), (0, EPERM), (7, ESRCH)])
def test_no_interrupt_can_be_mapped(current: Current, domid: int, errno: int) -> None:
    op = abi.physdev_map_pirq(domid, 0, 0, 0, 0, 0, 0, bytes(8))
    refused(current, errno, abi.PHYSDEVOP_map_pirq, op)
    refused(current, errno, abi.PHYSDEVOP_unmap_pirq, abi.physdev_unmap_pirq(domid, 0))


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.PHYSDEVOP_eoi, EINVAL),
        (abi.PHYSDEVOP_apic_read, EPERM),
        (abi.PHYSDEVOP_pci_device_add, EPERM),
        (abi.PHYSDEVOP_setup_gsi, EPERM),
        (32, ENOSYS),
    ],
)
def test_a_domu_has_no_hardware(current: Current, command: int, errno: int) -> None:
    refused(current, errno, command, abi.physdev_eoi(0))


def test_the_compat_form_has_the_command_in_its_struct(current: Current) -> None:
    size = abi.physdev_op.sizeof(current.vcpu.width) - abi.physdev_op.offsetof(
        "u", current.vcpu.width
    )
    op = abi.physdev_op(abi.PHYSDEVOP_set_iopl, (2).to_bytes(size, "little"))
    current.write_struct(ARGUMENT, op)
    assert physdev_op_compat.handler is not None
    physdev_op_compat.handler(current, ARGUMENT)
    assert pv(current).iopl == 2


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.PHYSDEVOP_apic_read, EFAULT),
        (abi.PHYSDEVOP_prepare_msix, EFAULT),
        (abi.PHYSDEVOP_restore_msi, EFAULT),
        (abi.PHYSDEVOP_get_free_pirq, EFAULT),
        (abi.PHYSDEVOP_dbgp_op, EPERM),
        (abi.PHYSDEVOP_pci_mmcfg_reserved, EPERM),
        (abi.PHYSDEVOP_pci_device_reset, ENOSYS),
    ],
)
def test_what_is_refused_before_its_argument_is_read(
    current: Current, command: int, errno: int
) -> None:
    assert physdev_op.handler is not None
    with pytest.raises(XenError) as error:
        physdev_op.handler(current, command, 1 << 30)
    assert error.value.errno == errno


@pytest.mark.parametrize(("gsi", "errno"), [(23, EPERM), (24, EINVAL), (-1, EINVAL)])
def test_a_line_must_exist_to_be_another_domains(current: Current, gsi: int, errno: int) -> None:
    refused(current, errno, abi.PHYSDEVOP_setup_gsi, abi.physdev_setup_gsi(gsi, 0, 0))


def test_there_is_no_device_to_restore(current: Current) -> None:
    refused(current, ENODEV, abi.PHYSDEVOP_restore_msi, abi.physdev_eoi(0))


def free_pirq(current: Current, kind: int) -> int:
    assert call(current, abi.PHYSDEVOP_get_free_pirq, abi.physdev_get_free_pirq(kind, 99)) == 0
    return current.read_struct(abi.physdev_get_free_pirq, ARGUMENT).pirq


def test_free_pirqs_are_given_once_each(current: Current) -> None:
    assert [free_pirq(current, 0) for _ in range(2)] == [55, 54]
    assert [free_pirq(current, abi.MAP_PIRQ_TYPE_GSI) for _ in range(2)] == [16, 17]
    assert call(current, abi.PHYSDEVOP_eoi, abi.physdev_eoi(55)) == 0
    refused(current, EINVAL, abi.PHYSDEVOP_eoi, abi.physdev_eoi(53))


def test_free_pirqs_run_out(current: Current) -> None:
    for _ in range(32):
        free_pirq(current, 0)
    op = abi.physdev_get_free_pirq(0, 99)
    refused(current, ENOSPC, abi.PHYSDEVOP_get_free_pirq, op)
