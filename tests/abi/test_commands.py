"""The commands in xenemu.abi against Xen's headers: none is missing, each has its number."""

from __future__ import annotations

import re

import pytest

from xenemu.abi import (
    callback,
    event_channel,
    grant_table,
    memory,
    nmi,
    physdev,
    sched,
    vcpu,
    version,
    xen,
)
from xenemu.abi.hvm import hvm_op

FAMILIES = [
    (callback, "callback.h", "CALLBACKOP_"),
    (event_channel, "event_channel.h", "EVTCHNOP_"),
    (grant_table, "grant_table.h", "GNTTABOP_"),
    (hvm_op, "hvm/hvm_op.h", "HVMOP_"),
    (memory, "memory.h", "XENMEM_"),
    (nmi, "nmi.h", "XENNMI_"),
    (physdev, "physdev.h", "PHYSDEVOP_"),
    (sched, "sched.h", "SCHEDOP_"),
    (vcpu, "vcpu.h", "VCPUOP_"),
    (version, "version.h", "XENVER_"),
    (xen, "xen.h", "MMUEXT_"),
]
# Numbers that share a prefix: what an operation of an operation is, its flags, its results.
NO_COMMAND = re.compile(
    r"XENMEM_((paging|access|sharing)_op_|SHARING_OP_|FORK_|resource_|RDM_ALL)"
    r"|HVMOP_(altp2m_|ALTP2M_)|PHYSDEVOP_DBGP_"
)
FIRST_ARCH = 48  # __HYPERVISOR_arch_0
LATER_THAN_THE_HEADERS = {
    "VCPUOP_register_runstate_phys_area",
    "VCPUOP_register_vcpu_time_phys_area",
    "PHYSDEVOP_pci_device_reset",
}


@pytest.mark.parametrize(("module", "header", "prefix"), FAMILIES)
def test_the_commands_are_xens(module, header, prefix, guest_image):
    text = (guest_image("xen-headers") / header).read_text()
    defined = re.findall(rf"^#\s*define\s+({prefix}\w+)\s+(\d+)\b", text, re.MULTILINE)
    theirs = {name: int(value) for name, value in defined if not NO_COMMAND.match(name)}
    ours = {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefix) and not NO_COMMAND.match(name)
    }
    assert theirs
    assert {name: ours[name] for name in ours if name not in LATER_THAN_THE_HEADERS} == theirs


def test_no_hypercall_is_missing(guest_image):
    text = (guest_image("xen-headers") / "xen.h").read_text()
    defined = re.findall(r"^#define __HYPERVISOR_(\w+)\s+(\d+)\b", text, re.MULTILINE)
    theirs = {name: int(value) for name, value in defined if not name.startswith("arch_")}
    assert {number.name: int(number) for number in xen.Nr if number < FIRST_ARCH} == theirs
