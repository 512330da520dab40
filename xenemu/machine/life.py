"""What xl does to a machine's domain that has suspended itself, and lives on.

The suspend can be called off: the same domain goes on (`cancel`). Or the domain is saved, and
another one is made from what was saved: here (`renew`), or from a file elsewhere (`revive`).

A guest sees which it was by what its hypercall returns: 1 or 0.

In Xen: tools/libs/light/libxl_create.c, libxl_domain.c; tools/libs/guest/xg_resume.c
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xenemu.abi.hvm.params import HVM_PARAM_CALLBACK_IRQ
from xenemu.cpu.context import by_name
from xenemu.dom0 import renewal, toolstack
from xenemu.dom0.console import Console
from xenemu.dom0.control import Control
from xenemu.dom0.xenstore import XenstoreRing
from xenemu.dom0.xenstore_tree import Store
from xenemu.entries import Entry
from xenemu.errors import DomainCrash, XenError
from xenemu.hv import cpu_policy, scheduler
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.grant_table import GrantError
from xenemu.hv.snapshot import DomainSnapshot
from xenemu.hv.state.domain import Backend, Domain
from xenemu.hv.state.schedule import Schedule
from xenemu.machine.core import Core
from xenemu.machine.host import Host
from xenemu.machine.machine import Machine
from xenemu.machine.migration import policy, pv_restore, pv_save, pvh_restore, pvh_save
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import PvState, Saved, TscInfo
from xenemu.pvh.state import PvhDomain
from xenemu.x86.cpuid import TSC_KHZ

TSC_MODE_DEFAULT = 0


def cancel(machine: Core) -> None:
    """Let a suspended domain go on as if nothing had been: its hypercall returns 1.

    As in Xen's tools, a PVH guest without HVM_PARAM_CALLBACK_IRQ has no drivers that would look at
    what it returns. It returns 0 there.
    """
    domain = machine.domain
    scheduler.resume(domain)
    if isinstance(domain.arch, PvhDomain) and not domain.arch.params.get(HVM_PARAM_CALLBACK_IRQ):
        return
    vcpu = domain.vcpus[0]
    if vcpu is machine.current.vcpu:
        machine.engine.regs[Reg.RAX] = 1
        return
    found = by_name(vcpu.saved)
    vcpu.saved = replace(found, general=(1, *found.general[1:]))


def save(machine: Core) -> Saved:
    """A suspended domain as a stream has it. StreamError says why it cannot be in one.

    Its pages are those of the machine's memory, and change with that.
    """
    arch = machine.domain.arch
    if isinstance(arch, PvhDomain) and arch.firmware is not None:
        raise StreamError("it was booted by EFI, whose state is in no stream of Xen's")
    return _saved(machine)


def _saved(machine: Core) -> Saved:
    domain = machine.domain
    tsc = TscInfo(TSC_MODE_DEFAULT, TSC_KHZ, machine.engine.now_ns, domain.incarnation)
    if domain.p2m is None:
        told, (pv, pages) = cpu_policy.PV[domain.width], pv_save.save(machine)
        return Saved(pv, pages, tsc, policy.cpuid(told), policy.msrs(told))
    told, (hvm, pages) = cpu_policy.hvm(len(domain.vcpus)), pvh_save.save(machine)
    return Saved(hvm, pages, tsc, policy.cpuid(told), policy.msrs(told))


def renew(machine: Core, away_ns: int) -> None:
    """Put a new domain in the place of a suspended one, `away_ns` of the host's time later.

    It has what the old one would have in a stream, and nothing else; its hypercall returns 0. As on
    one host, it has the next domain id. StreamError: it cannot be saved; then nothing is done.
    """
    old, engine, store = machine.domain, machine.engine, machine.host.store
    machine.console.pump(old)  # or what the ring has would be shown twice
    saved = _saved(machine)
    now_ns = engine.now_ns + away_ns
    known = renewal.describe(old, store)
    config = replace(known.config, domid=old.domid + 1)
    fresh = _make(saved, config, now_ns, old.memory.nr_frames)
    fresh.incarnation = old.incarnation + 1
    _keep_for_the_person(fresh, old)
    if isinstance(old.arch, PvhDomain) and isinstance(fresh.arch, PvhDomain):
        fresh.arch.firmware, fresh.arch.had_idt = old.arch.firmware, old.arch.had_idt
    fresh.output += old.output
    renewal.release(old, store)
    for key, due_ns in old.timers.deadlines_ns.items():
        if key[0] in known.names:  # a toolstack that waits goes on waiting
            fresh.timers.set(key, due_ns)
    domain = DomainSnapshot.of(fresh).restore(old)
    machine.host.frames = domain.frames
    engine.skip_to(now_ns)
    machine.go_on(domain)
    renewal.connect(domain, replace(known, config=config), store)


def _keep_for_the_person(fresh: Domain, old: Domain) -> None:
    """What nobody but reports and the order of turns asks of a domain."""
    fresh.calls, fresh.refusals, fresh.schedule = old.calls, old.refusals, old.schedule
    fresh.frames.calls = fresh.calls


def revive(
    entry: Entry,
    saved: Saved,
    config: DomainConfig,
    backends: Iterable[Backend] = (),
    away_ns: int = 0,
) -> Machine:
    """A new machine, whose domain was saved elsewhere, `away_ns` before.

    `entry` is one of its kind of domain. StreamError: what was saved makes no domain.
    """
    elapsed_ns = saved.tsc.elapsed_ns if saved.tsc else 0
    now_ns = elapsed_ns + away_ns
    domain = _make(saved, config, now_ns, None)
    domain.incarnation = (saved.tsc.incarnation if saved.tsc else 0) + 1 & 0xFFFFFFFF
    domain.schedule = Schedule(config.slice_ns, config.schedule_seed)
    host, console, control = Host(domain.memory, domain.frames, Store()), Console(), Control()
    host.admit(domain)
    own: list[Backend] = [XenstoreRing(store=host.store), console, control]
    try:
        toolstack.create(domain, config, host.store, [*own, *backends])
    except (GrantError, XenError) as error:
        raise StreamError(f"its rings are of no use: {error}") from None
    machine = Machine.__new__(Machine)
    machine.put_together(entry, console, control, host)
    machine.engine.skip_to(now_ns)
    machine.reset_cpu(config.rng_seed)
    machine.go_on(domain)
    return machine


def _make(saved: Saved, config: DomainConfig, now_ns: int, nr_frames: int | None) -> Domain:
    """A domain in a memory of its own, without backends; StreamError."""
    try:
        if isinstance(saved.state, PvState):
            return pv_restore.restore(saved, saved.state, config, now_ns)
        return pvh_restore.restore(saved, saved.state, config, now_ns, nr_frames)
    except (XenError, DomainCrash, GrantError) as error:
        raise StreamError(f"Xen refuses what it has: {error}") from None
