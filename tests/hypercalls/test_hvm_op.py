"""hypercalls/hvm_op.py"""

from __future__ import annotations

import pytest

from fakes import FIRST_GUEST_FRAME, FakeCpu, FakeNativeCpu, make_current, make_pvh_current
from hypercalls.hvm_op import hvm_op
from xenemu.abi.errno import EINVAL, ENODEV, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xenemu.abi.hvm import hvm_op as abi
from xenemu.abi.hvm import params
from xenemu.abi.layout import Struct
from xenemu.abi.xen import DOMID_SELF
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.current import Current
from xenemu.pvh import lapic_glue
from xenemu.pvh.state import pvh, pvh_domain

ARGUMENT = 0x20000


@pytest.fixture
def current() -> Current:
    return make_current()


def call(current: Current, command: int, op: Struct) -> int:
    current.write_struct(ARGUMENT, op)
    assert hvm_op.handler is not None
    return hvm_op.handler(current, command, ARGUMENT) or 0


def refused(current: Current, errno: int, command: int, op: Struct) -> None:
    with pytest.raises(XenError) as error:
        call(current, command, op)
    assert error.value.errno == errno
    assert current.read(ARGUMENT, op.sizeof(8)) == op.pack(8)


@pytest.mark.parametrize(
    ("domid", "index", "errno"), [(DOMID_SELF, 1, EINVAL), (7, 1, ESRCH), (7, 39, EINVAL)]
)
def test_a_pv_guest_has_no_parameters(current: Current, domid: int, index: int, errno: int) -> None:
    for command in (abi.HVMOP_get_param, abi.HVMOP_set_param):
        refused(current, errno, command, abi.xen_hvm_param(domid, 0, index, 5))


def test_the_time_is_system_time(current: Current) -> None:
    assert isinstance(current.cpu, FakeCpu)
    current.cpu.now_ns = 12345
    call(current, abi.HVMOP_get_time, abi.xen_hvm_get_time(0))
    assert current.read_struct(abi.xen_hvm_get_time, ARGUMENT).now == 12345


@pytest.mark.parametrize(("event", "size"), [(0x1000, 0), (0, 29)])
def test_a_trace_record_has_a_form(current: Current, event: int, size: int) -> None:
    assert call(current, abi.HVMOP_xentrace, abi.xen_hvm_xentrace(0xFFF, 28, bytes(28))) == 0
    refused(current, EINVAL, abi.HVMOP_xentrace, abi.xen_hvm_xentrace(event, size, bytes(28)))


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (abi.HVMOP_flush_tlbs, EINVAL),
        (abi.HVMOP_set_evtchn_upcall_vector, EINVAL),
        (abi.HVMOP_guest_request_vm_event, EINVAL),
        (abi.HVMOP_altp2m, EOPNOTSUPP),
        (2, ENOSYS),
        (99, ENOSYS),
    ],
)
def test_what_is_not_for_a_pv_guest(current: Current, command: int, errno: int) -> None:
    refused(current, errno, command, abi.xen_hvm_evtchn_upcall_vector(0, 0x20))


# A PVH guest.

DOM0 = 0


@pytest.fixture
def native() -> Current:
    return make_pvh_current()


def set_param(current: Current, index: int, value: int, domid: int = DOMID_SELF) -> None:
    assert call(current, abi.HVMOP_set_param, abi.xen_hvm_param(domid, 0, index, value)) == 0


def get_param(current: Current, index: int, domid: int = DOMID_SELF) -> int:
    call(current, abi.HVMOP_get_param, abi.xen_hvm_param(domid, 0, index, 0))
    return current.read_struct(abi.xen_hvm_param, ARGUMENT).value


@pytest.mark.parametrize(
    "index",
    [
        params.HVM_PARAM_CALLBACK_IRQ,
        params.HVM_PARAM_STORE_EVTCHN,
        params.HVM_PARAM_CONSOLE_EVTCHN,
        params.HVM_PARAM_VM_GENERATION_ID_ADDR,
    ],
)
def test_what_a_guest_sets_again_and_again(native: Current, index: int) -> None:
    for value in (5, 6):
        set_param(native, index, value)
        assert get_param(native, index) == value


def test_what_a_guest_only_reads(native: Current) -> None:
    pvh_domain(native).params[params.HVM_PARAM_STORE_PFN] = 0xFEFFC
    assert get_param(native, params.HVM_PARAM_STORE_PFN) == 0xFEFFC
    op = abi.xen_hvm_param(DOMID_SELF, 0, params.HVM_PARAM_STORE_PFN, 5)
    refused(native, EPERM, abi.HVMOP_set_param, op)
    assert get_param(native, params.HVM_PARAM_STORE_PFN) == 0xFEFFC


@pytest.mark.parametrize(
    ("domid", "index", "errno"),
    [
        (DOMID_SELF, params.HVM_NR_PARAMS, EINVAL),
        (DOMID_SELF, params.HVM_PARAM_PAE_ENABLED, EINVAL),
        (DOMID_SELF, params.HVM_PARAM_BUFIOREQ_EVTCHN, EINVAL),
        (DOMID_SELF, params.HVM_PARAM_IDENT_PT, EPERM),
        (DOMID_SELF, params.HVM_PARAM_IOREQ_PFN, EPERM),
        (DOMID_SELF, 3, EPERM),
        (DOM0, params.HVM_PARAM_STORE_EVTCHN, EINVAL),
        (9, params.HVM_PARAM_STORE_EVTCHN, ESRCH),
    ],
)
def test_parameters_out_of_reach(native: Current, domid: int, index: int, errno: int) -> None:
    before = dict(pvh_domain(native).params)
    for command in (abi.HVMOP_get_param, abi.HVMOP_set_param):
        refused(native, errno, command, abi.xen_hvm_param(domid, 0, index, 5))
    assert pvh_domain(native).params == before


@pytest.mark.parametrize(
    ("index", "errno"),
    [(params.HVM_PARAM_ACPI_IOPORTS_LOCATION, ENODEV), (params.HVM_PARAM_X87_FIP_WIDTH, EINVAL)],
)
def test_values_that_are_none(native: Current, index: int, errno: int) -> None:
    refused(native, errno, abi.HVMOP_set_param, abi.xen_hvm_param(DOMID_SELF, 0, index, 1))
    assert pvh_domain(native).params == {}


def test_the_real_mode_tss_has_two_forms(native: Current) -> None:
    set_param(native, params.HVM_PARAM_VM86_TSS, 0x1000)
    assert get_param(native, params.HVM_PARAM_VM86_TSS_SIZED) == 128 << 32 | 0x1000
    set_param(native, params.HVM_PARAM_VM86_TSS_SIZED, 1 << 62 | 0x2000)
    assert get_param(native, params.HVM_PARAM_VM86_TSS) == 0x2000
    assert get_param(native, params.HVM_PARAM_VM86_TSS_SIZED) >> 32 == 8329


@pytest.mark.parametrize(
    ("index", "value"),
    [(params.HVM_PARAM_VM86_TSS, 1 << 32), (params.HVM_PARAM_VM86_TSS_SIZED, 103 << 32)],
)
def test_a_real_mode_tss_that_cannot_be_ends_the_guest(
    native: Current, index: int, value: int
) -> None:
    with pytest.raises(DomainCrash):
        set_param(native, index, value)
    assert pvh_domain(native).params == {}


def test_tlbs_are_flushed(native: Current) -> None:
    assert hvm_op.handler is not None
    with pytest.raises(XenError):
        hvm_op.handler(native, abi.HVMOP_flush_tlbs, ARGUMENT)
    assert isinstance(native.cpu, FakeCpu)
    assert native.cpu.flushes == 0
    assert not hvm_op.handler(native, abi.HVMOP_flush_tlbs, 0)
    assert native.cpu.flushes == 1


@pytest.mark.parametrize(("domid", "errno"), [(DOMID_SELF, EINVAL), (DOM0, EOPNOTSUPP), (9, ESRCH)])
def test_no_page_table_is_in_anyones_shadow(native: Current, domid: int, errno: int) -> None:
    op = abi.xen_hvm_pagetable_dying(domid, bytes(6), 0)
    refused(native, errno, abi.HVMOP_pagetable_dying, op)


@pytest.mark.parametrize(
    ("pfn", "kind"), [(FIRST_GUEST_FRAME, abi.HVMMEM_ram_rw), (0xFEE00, abi.HVMMEM_mmio_dm)]
)
def test_kinds_of_memory(native: Current, pfn: int, kind: int) -> None:
    call(native, abi.HVMOP_get_mem_type, abi.xen_hvm_get_mem_type(DOMID_SELF, 7, bytes(4), pfn))
    assert native.read_struct(abi.xen_hvm_get_mem_type, ARGUMENT).mem_type == kind


def test_an_upcall_vector_is_raised_at_once(native: Current) -> None:
    lapic_glue.write(native, 0xF0, 4, 0x1FF)
    call(
        native,
        abi.HVMOP_set_evtchn_upcall_vector,
        abi.xen_hvm_evtchn_upcall_vector(0, 0xF3),
    )
    assert isinstance(native.cpu, FakeNativeCpu)
    assert native.cpu.apic_vector == 0xF3


@pytest.mark.parametrize(("vcpu", "vector", "errno"), [(0, 0x0F, EINVAL), (1, 0x20, ENOENT)])
def test_upcall_vectors_that_are_refused(
    native: Current, vcpu: int, vector: int, errno: int
) -> None:
    op = abi.xen_hvm_evtchn_upcall_vector(vcpu, vector)
    refused(native, errno, abi.HVMOP_set_evtchn_upcall_vector, op)
    assert pvh(native).upcall_vector == 0
