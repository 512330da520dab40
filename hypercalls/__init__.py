"""The hypercalls: a module per family, and TABLE, every row in number order."""

from __future__ import annotations

from hypercalls.callbacks import callback_op, nmi_op, set_callbacks, set_trap_table
from hypercalls.console_io import console_io
from hypercalls.descriptors import set_gdt, set_segment_base, update_descriptor
from hypercalls.event_channel_op import event_channel_op, event_channel_op_compat
from hypercalls.grant_table_op import grant_table_op
from hypercalls.hvm_op import hvm_op
from hypercalls.memory_op import memory_op
from hypercalls.mmu_update import mmu_update
from hypercalls.mmuext_op import mmuext_op
from hypercalls.multicall import multicall
from hypercalls.physdev_op import physdev_op, physdev_op_compat
from hypercalls.pv_misc import (
    fpu_taskswitch,
    get_debugreg,
    iret,
    set_debugreg,
    stack_switch,
)
from hypercalls.refused import REFUSED
from hypercalls.sched_op import sched_op, sched_op_compat
from hypercalls.set_timer_op import set_timer_op
from hypercalls.toolstack import dm_op, domctl, paging_domctl_cont, platform_op, sysctl
from hypercalls.update_va_mapping import (
    update_va_mapping,
    update_va_mapping_otherdomain,
)
from hypercalls.vcpu_op import vcpu_op
from hypercalls.vm_assist import vm_assist
from hypercalls.xen_version import xen_version
from xenemu.hv.dispatch import HypercallTable

ROWS = [
    set_trap_table,
    mmu_update,
    set_gdt,
    stack_switch,
    set_callbacks,
    fpu_taskswitch,
    sched_op_compat,
    platform_op,
    set_debugreg,
    get_debugreg,
    update_descriptor,
    memory_op,
    multicall,
    update_va_mapping,
    set_timer_op,
    event_channel_op_compat,
    xen_version,
    console_io,
    physdev_op_compat,
    grant_table_op,
    vm_assist,
    update_va_mapping_otherdomain,
    iret,
    vcpu_op,
    set_segment_base,
    mmuext_op,
    nmi_op,
    sched_op,
    callback_op,
    event_channel_op,
    physdev_op,
    hvm_op,
    sysctl,
    domctl,
    dm_op,
    paging_domctl_cont,
    *REFUSED,
]
TABLE = HypercallTable(sorted(ROWS, key=lambda row: row.number))
