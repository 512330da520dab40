"""A PVH domain from a stream: its memory where it was, Xen's own state, HVM parameters.

In Xen: tools/libs/guest/xg_sr_restore_x86_hvm.c; common/hvm/save.c
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.arch_x86.hvm import save as abi
from xenemu.abi.hvm import params
from xenemu.cpu.context import pack
from xenemu.errors import XenError
from xenemu.hv import cpu_policy
from xenemu.hv.building import MAX_PAGES_SLACK, DomainConfig, give_rings
from xenemu.hv.clock import update_wallclock, write_time
from xenemu.hv.scheduler import wait
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import RunState
from xenemu.machine.migration import hvm_context, policy
from xenemu.machine.migration.pvh_save import PARAMS
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import HvmState, Saved
from xenemu.pvh import builder
from xenemu.pvh.lapic_glue import TIMER
from xenemu.pvh.state import PvhDomain, pvh_vcpu
from xenemu.records import dataclass
from xenemu.x86.paging import PAGE_SHIFT, PAGE_SIZE, Mfn

PAT_AFTER_RESET: Final = 0x0007040600070406
RINGS: Final = (params.HVM_PARAM_CONSOLE_PFN, params.HVM_PARAM_STORE_PFN)
CLEARED: Final = (*RINGS, params.HVM_PARAM_IOREQ_PFN, params.HVM_PARAM_BUFIOREQ_PFN)


def restore(
    saved: Saved,
    state: HvmState,
    config: DomainConfig,
    now_ns: int,
    nr_frames: int | None = None,
) -> Domain:
    """A domain in a memory of its own, of `nr_frames`; StreamError: it makes no domain.

    Each vcpu that is up has its registers saved.
    """
    return _Restore(saved, state, config, now_ns, nr_frames).run()


@dataclass
class _Restore:
    saved: Saved
    state: HvmState
    config: DomainConfig
    now_ns: int
    nr_frames: int | None

    def run(self) -> Domain:
        """Make the domain, in the order of Xen's tools."""
        nr_pages = len(self.saved.pages.data)
        most = (self.config.most_memory >> PAGE_SHIFT) + MAX_PAGES_SLACK
        if nr_pages > most:
            raise StreamError(f"it has {nr_pages} pages, and the memory asked for {most} at most")
        policy.check(self.saved.cpuid_policy, cpu_policy.hvm(self.config.all_vcpus))
        domain = self.domain = self._make_domain()
        self._load_params()
        self._load_context()
        for vcpu in domain.vcpus:
            write_time(domain, vcpu, self.now_ns)
        update_wallclock(domain)
        return domain

    def _make_domain(self) -> Domain:
        pages = self.saved.pages.data
        try:
            domain = builder.make_empty(self.config, sorted(pages), self.nr_frames)
        except XenError as error:
            raise StreamError(f"its memory does not fit: {error.reason}") from None
        p2m, ram = domain.p2m, domain.memory.bytes
        assert p2m is not None
        for gfn, page in pages.items():
            start = p2m.lookup(gfn) << PAGE_SHIFT
            ram[start : start + PAGE_SIZE] = page
        return domain

    def _load_params(self) -> None:
        domain, found = self.domain, self.state.params
        for index in found:
            if index not in PARAMS:
                raise StreamError(f"it sets HVM parameter {index}, which no restore may")
        frames = {index: self._frame(index) for index in CLEARED if index in found}
        for index in RINGS:
            if index not in found:
                raise StreamError(f"it has no HVM parameter {index}: where a ring is")
        for mfn in frames.values():
            domain.memory.clear_frame(mfn)
        domain.console.mfn = frames[params.HVM_PARAM_CONSOLE_PFN]
        domain.xenstore.mfn = frames[params.HVM_PARAM_STORE_PFN]
        give_rings(domain)
        own = domain.arch = PvhDomain(builder.hvm_params(domain))
        own.params.update(found)

    def _frame(self, index: int) -> Mfn:
        gfn = self.state.params[index]
        if gfn not in self.saved.pages.data:
            raise StreamError(f"HVM parameter {index} names guest frame {gfn:#x}, which is a hole")
        assert self.domain.p2m is not None
        return self.domain.p2m.lookup(gfn)

    def _load_context(self) -> None:
        domain = self.domain
        found: dict[int, dict[int, bytes]] = {}
        for code, number, body in hvm_context.records(memoryview(self.state.context)):
            if number >= len(domain.vcpus):
                raise StreamError(f"it has a vcpu {number}, and {len(domain.vcpus)} were asked for")
            found.setdefault(code, {})[number] = body
        pats = {}
        for number, body in found.get(abi.HVM_SAVE_MTRR, {}).items():
            state = pvh_vcpu(domain.vcpus[number])
            state.mtrrs, pats[number] = hvm_context.load_mtrr(
                hvm_context.unpack(abi.hvm_hw_mtrr, body)
            )
        for number, body in found.get(abi.CPU_MSR_CODE, {}).items():
            domain.vcpus[number].msrs |= hvm_context.load_msrs(body)
        self._load_lapics(found)
        for number, body in found.get(abi.HVM_SAVE_CPU, {}).items():
            self._load_cpu(number, body, pats.get(number, PAT_AFTER_RESET))
        if not domain.vcpus[0].online:
            raise StreamError("it has no registers of vcpu 0")

    def _load_lapics(self, found: dict[int, dict[int, bytes]]) -> None:
        domain = self.domain
        for number, body in found.get(abi.HVM_SAVE_LAPIC, {}).items():
            target = pvh_vcpu(domain.vcpus[number]).lapic
            hvm_context.load_lapic(target, hvm_context.unpack(abi.hvm_hw_lapic, body))
        for number, body in found.get(abi.HVM_SAVE_LAPIC_REGS, {}).items():
            target = pvh_vcpu(domain.vcpus[number]).lapic
            page = hvm_context.unpack(abi.hvm_hw_lapic_regs, body).data
            hvm_context.load_lapic_page(target, page, self.now_ns)
            deadline = target.deadline_ns()
            if deadline is not None:
                domain.timers.set((TIMER, number), deadline)

    def _load_cpu(self, number: int, body: bytes, pat: int) -> None:
        vcpu = self.domain.vcpus[number]
        registers = hvm_context.unpack(abi.hvm_hw_cpu, body)
        vcpu.saved = hvm_context.context(registers, pat)
        pack(vcpu.saved)  # or a field has another size than the CPU's
        vcpu.initialised = vcpu.online = True
        wait(self.domain, vcpu, self.now_ns)
        if number == 0:
            vcpu.runstate = RunState.RUNNING
