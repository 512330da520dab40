"""vcpu operations: up and down, timers, runstate, and the areas that a vcpu shares with Xen.

Header: public/vcpu.h
In Xen: common/domain.c, arch/x86/domain.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.arch_x86.xen import HYPERVISOR_VIRT_END, vcpu_guest_context
from xenemu.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS
from xenemu.abi.features import XENFEAT_auto_translated_physmap
from xenemu.abi.hvm.hvm_vcpu import vcpu_hvm_context
from xenemu.abi.sched import SHUTDOWN_poweroff
from xenemu.abi.vcpu import (
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_runstate_phys_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_register_vcpu_time_phys_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_register_runstate_memory_area,
    vcpu_register_time_memory_area,
    vcpu_register_vcpu_info,
    vcpu_set_periodic_timer,
    vcpu_set_singleshot_timer,
)
from xenemu.abi.xen import XEN_LEGACY_MAX_VCPUS, Nr
from xenemu.errors import XenError
from xenemu.hv import scheduler, waking
from xenemu.hv.calls import no_vcpu_is_up
from xenemu.hv.clock import update_time
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, INT, PTR, Continue, Hypercall, StandingAnswer, SubOps
from xenemu.hv.frame_table import PGT_writable_page
from xenemu.hv.pagetype import Restart
from xenemu.hv.shared_info import VCPU_INFO_SIZE, mark_events_pending, vcpu_field
from xenemu.hv.state.vcpu import Vcpu
from xenemu.pv import context, traps
from xenemu.pvh import callbacks, lapic_glue
from xenemu.pvh import context as pvh_context
from xenemu.pvh.state import pvh_vcpu
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Maddr

MIN_PERIOD_NS: Final = 1_000_000
MAX_PERIOD_NS: Final = (1 << 62) - 1  # STIME_DELTA_MAX
COMPAT_VIRT_START: Final = 0xF5800000


class VcpuOps(SubOps):
    """Sub-operations on a vcpu: handlers are called with (current, vcpu, struct or pointer)."""

    arguments = ("command", "vcpu", "pointer")

    def __call__(self, current: Current, command: int, *args: int) -> int | None:
        vcpu_id, pointer = args
        if vcpu_id >= len(current.domain.vcpus):
            if command == VCPUOP_is_up:
                raise StandingAnswer(ENOENT, no_vcpu_is_up(vcpu_id))
            raise XenError(ENOENT, f"there is no vcpu {vcpu_id}")
        op, handler = self.implemented(current, command, pointer)
        argument = pointer if op.struct is None else current.read_struct(op.struct, pointer)
        return handler(current, current.domain.vcpus[vcpu_id], argument)


ops = VcpuOps("vcpu_op", ENOSYS)


@ops.sub(VCPUOP_initialise)
def initialise(current: Current, vcpu: Vcpu, pointer: int) -> None:
    """Load the first registers of a vcpu; EFAULT; EEXIST: it has been done.

    EINVAL: the vcpu has no vcpu_info yet, or the guest may not have such registers or tables.
    """
    if vcpu.vcpu_id >= XEN_LEGACY_MAX_VCPUS and not vcpu.info_registered:
        raise XenError(EINVAL, f"vcpu {vcpu.vcpu_id} has no vcpu_info: register one first")
    if current.domain.p2m is not None:
        registers = current.read_struct(vcpu_hvm_context, pointer)
        _check_fresh(vcpu)
        pvh_vcpu(vcpu).start = pvh_context.checked(registers)
        vcpu.initialised = True
        return
    given = current.read_struct(vcpu_guest_context, pointer)
    _check_fresh(vcpu)
    try:
        starts = context.initialise(current, vcpu, given)
    except Restart:
        raise Continue(VCPUOP_initialise, vcpu.vcpu_id, pointer) from None
    vcpu.initialised = True
    if starts:
        scheduler.bring_up(current, vcpu)


def _check_fresh(vcpu: Vcpu) -> None:
    if vcpu.initialised or vcpu.online:
        raise XenError(EEXIST, f"vcpu {vcpu.vcpu_id} is initialised already")


@ops.sub(VCPUOP_up)
def up(current: Current, vcpu: Vcpu, pointer: int) -> None:
    """Let an initialised vcpu run; EINVAL: it is not initialised."""
    if not (vcpu.initialised or vcpu.online):
        raise XenError(EINVAL, f"vcpu {vcpu.vcpu_id} is not initialised")
    if not vcpu.online:
        scheduler.bring_up(current, vcpu)


@ops.sub(VCPUOP_down)
def down(current: Current, vcpu: Vcpu, pointer: int) -> None:
    """Take a vcpu off; the last one powers the domain off."""
    if not any(other.online for other in current.domain.vcpus if other is not vcpu):
        why = "the guest's last vcpu went down, and none had asked for a shutdown"
        scheduler.shutdown(current.domain, SHUTDOWN_poweroff, why)
        current.cpu.stop()
    elif vcpu.online:
        vcpu.initialised = True
        vcpu.online = False
        scheduler.wait(current.domain, vcpu, current.cpu.now_ns)
        if vcpu is current.vcpu:
            scheduler.leave_cpu(current)


@ops.sub(VCPUOP_is_up)
def is_up(current: Current, vcpu: Vcpu, pointer: int) -> int:
    return int(vcpu.online)


@ops.sub(VCPUOP_get_runstate_info)
def get_runstate_info(current: Current, vcpu: Vcpu, pointer: int) -> None:
    current.write_struct(pointer, scheduler.runstate_info(vcpu, current.cpu.now_ns))


@ops.sub(VCPUOP_register_runstate_memory_area, vcpu_register_runstate_memory_area)
def register_runstate_memory_area(
    current: Current, vcpu: Vcpu, op: vcpu_register_runstate_memory_area
) -> None:
    """Keep a copy of a vcpu's runstate in guest memory; an address of 0 ends that.

    The area is written when the vcpu starts to run, and now.
    """
    vcpu.runstate_area = _area(current, op.addr)
    if vcpu is current.vcpu:
        scheduler.update_runstate_area(current)


@ops.sub(VCPUOP_set_periodic_timer, vcpu_set_periodic_timer)
def set_periodic_timer(current: Current, vcpu: Vcpu, op: vcpu_set_periodic_timer) -> None:
    """Raise VIRQ_TIMER again and again while the vcpu runs; EINVAL: under 1 ms, or absurd."""
    if not MIN_PERIOD_NS <= op.period_ns <= MAX_PERIOD_NS:
        raise XenError(EINVAL, f"a period of {op.period_ns} ns: at least 1 ms is allowed")
    scheduler.set_periodic_timer(current, vcpu, op.period_ns)


@ops.sub(VCPUOP_stop_periodic_timer)
def stop_periodic_timer(current: Current, vcpu: Vcpu, pointer: int) -> None:
    scheduler.set_periodic_timer(current, vcpu, 0)


@ops.sub(VCPUOP_set_singleshot_timer, vcpu_set_singleshot_timer)
def set_singleshot_timer(current: Current, vcpu: Vcpu, op: vcpu_set_singleshot_timer) -> None:
    """Raise VIRQ_TIMER at a system time; at once if that is past. EINVAL: another vcpu's.

    VCPU_SSHOTTMR_future is ignored: Xen 4.17.7 no longer gives -ETIME for it.
    """
    _check_current(current, vcpu)
    key = (scheduler.SINGLESHOT, vcpu.vcpu_id)
    current.domain.timers.set(key, op.timeout_abs_ns)


@ops.sub(VCPUOP_stop_singleshot_timer)
def stop_singleshot_timer(current: Current, vcpu: Vcpu, pointer: int) -> None:
    """Stop the current vcpu's timer. EINVAL: another vcpu's."""
    _check_current(current, vcpu)
    current.domain.timers.cancel((scheduler.SINGLESHOT, vcpu.vcpu_id))


@ops.sub(VCPUOP_register_vcpu_info, vcpu_register_vcpu_info)
def register_vcpu_info(current: Current, vcpu: Vcpu, op: vcpu_register_vcpu_info) -> None:
    """Move a vcpu's vcpu_info, for good; everything becomes pending, so that no event is lost.

    EINVAL: it would cross a page, it has been done, the vcpu is another one that is up, or the page
    is not the guest's, or not writable.
    """
    domain = current.domain
    if op.offset > PAGE_SIZE - VCPU_INFO_SIZE:
        raise XenError(EINVAL, f"a vcpu_info at offset {op.offset:#x} crosses its page")
    if vcpu.info_registered:
        raise XenError(EINVAL, f"vcpu {vcpu.vcpu_id}'s vcpu_info has been moved already")
    if vcpu is not current.vcpu and vcpu.online:
        raise XenError(EINVAL, f"vcpu {vcpu.vcpu_id} is up, and not the one that asks")
    mfn = domain.gfn_to_mfn(op.mfn)
    try:
        domain.frames.get_page_and_type(mfn, domain.domid, PGT_writable_page)
    except XenError as error:
        raise XenError(EINVAL, error.reason) from None
    info = Maddr((mfn << PAGE_SHIFT) + op.offset)
    domain.memory.write(info, domain.memory.read(vcpu.info, VCPU_INFO_SIZE))
    vcpu.info = info
    vcpu.info_registered = True
    selector = vcpu_field(domain, vcpu, "evtchn_pending_sel")
    domain.memory.write_uint(selector, domain.shared_info_width, -1)
    if domain.p2m is not None and vcpu is current.vcpu:
        callbacks.update_upcall(current)
    if mark_events_pending(domain, vcpu):
        waking.wake(domain, vcpu)
    update_time(current, vcpu)


@ops.sub(VCPUOP_send_nmi)
def send_nmi(current: Current, vcpu: Vcpu, pointer: int) -> None:
    """Send an NMI; EINVAL: the pointer is not null.

    It wakes a vcpu that is blocked. A PV guest's vcpu loses it if it has no handler for it.
    """
    if pointer:
        raise XenError(EINVAL, "VCPUOP_send_nmi takes no argument")
    if current.domain.p2m is None:
        traps.send_nmi(current, vcpu)
    else:
        lapic_glue.send_nmi(current, vcpu)


ops.answer(VCPUOP_get_physid, "get_physid", EINVAL, "the vcpu is not pinned to a physical CPU")


@ops.sub(VCPUOP_register_vcpu_time_memory_area, vcpu_register_time_memory_area)
def register_vcpu_time_memory_area(
    current: Current, vcpu: Vcpu, op: vcpu_register_time_memory_area
) -> None:
    """Keep a second vcpu_time_info in guest memory; an address of 0 ends that."""
    vcpu.time_area = _area(current, op.addr)
    update_time(current, vcpu)


for _command, _name in (
    (VCPUOP_register_runstate_phys_area, "register_runstate_phys_area"),
    (VCPUOP_register_vcpu_time_phys_area, "register_vcpu_time_phys_area"),
):
    ops.answer(_command, _name, ENOSYS, "came with Xen 4.18")


def _check_current(current: Current, vcpu: Vcpu) -> None:
    if vcpu is not current.vcpu:
        raise XenError(EINVAL, f"vcpu {vcpu.vcpu_id}'s timer is its own")


def _area(current: Current, address: int) -> int:
    """The guest address of an area; EFAULT if a PV guest names one of Xen's own."""
    domain = current.domain
    address &= (1 << 8 * current.vcpu.width) - 1
    if domain.features >> XENFEAT_auto_translated_physmap & 1:
        return address
    if current.vcpu.width == 8:
        xens = 1 << 47 <= address < HYPERVISOR_VIRT_END
    else:
        xens = address >= COMPAT_VIRT_START
    if xens:
        raise XenError(EFAULT, f"{address:#x} is not a guest's address")
    return address


vcpu_op = Hypercall(Nr.vcpu_op, "vcpu_op", ALL, (INT, INT, PTR), ops)
