"""hypercalls/xen_version.py"""

from __future__ import annotations

import pytest

from fakes import make_current
from hypercalls.vm_assist import vm_assist
from hypercalls.xen_version import xen_version
from xenemu.abi import version as abi
from xenemu.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM
from xenemu.abi.features import XENFEAT_supervisor_mode_kernel, pv_features, pvh_features
from xenemu.abi.xen import VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3
from xenemu.errors import XenError
from xenemu.hv.current import Current

BUFFER = 0x20000


@pytest.fixture
def current() -> Current:
    current = make_current()
    current.domain.features = pv_features()
    return current


def call(current: Current, command: int, pointer: int = BUFFER) -> int:
    assert xen_version.handler is not None
    return xen_version.handler(current, command, pointer) or 0


def text(current: Current, command: int, size: int) -> str:
    current.write(BUFFER, b"\xff" * size)
    assert call(current, command) == 0
    return current.read(BUFFER, size).rstrip(b"\0").decode()


def features(current: Current) -> int:
    current.write_struct(BUFFER, abi.xen_feature_info(0, 0))
    call(current, abi.XENVER_get_features)
    return current.read_struct(abi.xen_feature_info, BUFFER).submap


def test_this_is_xen_4_17_7(current: Current) -> None:
    assert call(current, abi.XENVER_version) == 0x40011
    assert text(current, abi.XENVER_extraversion, 16) == ".7"


def test_texts_fill_their_fields(current: Current) -> None:
    assert "xen-3.0-x86_64 " in text(current, abi.XENVER_capabilities, 1024)
    assert text(current, abi.XENVER_changeset, 64) == ""
    assert text(current, abi.XENVER_compile_info, 144).startswith("xenemu ")


def test_linux_sees_the_features_that_it_sees_on_xen(current: Current) -> None:
    assert not features(current) >> 4 & 1
    assert vm_assist.handler is not None
    vm_assist.handler(current, VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3)
    assert features(current) == 0x220F0


def test_no_kernel_is_told_that_it_runs_in_ring_0() -> None:
    for told in (pv_features(), pv_features(~0), pvh_features()):
        assert not told >> XENFEAT_supervisor_mode_kernel & 1


def test_there_is_one_submap_of_features(current: Current) -> None:
    current.write_struct(BUFFER, abi.xen_feature_info(1, 99))
    with pytest.raises(XenError) as error:
        call(current, abi.XENVER_get_features)
    assert error.value.errno == EINVAL
    assert current.read_struct(abi.xen_feature_info, BUFFER).submap == 99


@pytest.mark.parametrize(("width", "start"), [(8, 0xFFFF800000000000), (4, 0xF5800000)])
def test_xens_range_starts_by_the_guests_width(width: int, start: int) -> None:
    current = make_current(width)
    call(current, abi.XENVER_platform_parameters)
    assert current.read_ulong(BUFFER) == start


def test_the_page_size_needs_no_pointer(current: Current) -> None:
    assert call(current, abi.XENVER_pagesize, 0) == 4096


def test_the_guest_handle_is_the_uuid(current: Current) -> None:
    call(current, abi.XENVER_guest_handle)
    assert current.read(BUFFER, 16) == current.domain.uuid


def test_a_domu_is_denied_the_command_line(current: Current) -> None:
    assert text(current, abi.XENVER_commandline, 9) == "<denied>"


@pytest.mark.parametrize(
    ("command", "pointer", "errno"),
    [
        (abi.XENVER_build_id, 0, EPERM),
        (abi.XENVER_extraversion, 0x5000, EFAULT),
        (11, BUFFER, ENOSYS),
    ],
)
def test_a_question_that_is_refused(
    current: Current, command: int, pointer: int, errno: int
) -> None:
    before = current.read(pointer, 64)
    with pytest.raises(XenError) as error:
        call(current, command, pointer)
    assert error.value.errno == errno
    assert current.read(pointer, 64) == before
