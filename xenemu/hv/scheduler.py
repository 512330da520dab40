"""Blocking vcpus, their runstate accounting, and what their timers do.

The machine has the loop that runs a vcpu, each in its turn, for a slice of virtual time. The loop
calls `leave` when a vcpu loses the CPU to another, and `enter` when a vcpu gets it. When a timer is
due, it calls what `TIMERS` has for that kind of timer.

A slice is long while one vcpu is runnable, and short while several are. It ends early if the vcpu
blocks, polls or yields, if it spins in PAUSE, or if it makes another vcpu runnable
(`Domain.reschedule`). Turns go round robin.

A seed (`Domain.schedule`) draws another order. Then a slice has from a 128th to twice its length,
and short ones are as likely as long ones. Any other vcpu that is runnable comes next. And a vcpu
that makes another one runnable may go on for a while, as if the other one had a CPU of its own that
is slow to start.

In Xen: common/sched/core.c, common/domain.c (runstate area, shutdown)
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Final

from xenemu.abi.sched import SHUTDOWN_poweroff, SHUTDOWN_watchdog
from xenemu.abi.vcpu import vcpu_runstate_info
from xenemu.abi.xen import Virq
from xenemu.errors import XenError
from xenemu.hv import event_channel
from xenemu.hv.current import Current
from xenemu.hv.shared_info import event_pending
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.schedule import Schedule
from xenemu.hv.state.vcpu import RunState, Vcpu
from xenemu.hv.timers import Owners
from xenemu.hv.waking import NO_POLL, POLL, wake

# What a vcpu's timers are for: the first half of a `timers.Key`; the second is the vcpu.
SINGLESHOT: Final = "singleshot"
PERIODIC: Final = "periodic"
WATCHDOG: Final = "watchdog"  # the second half is the watchdog's number, 1 or 2


TIMES: Final = struct.Struct("<4Q")  # in each RunState
SLICE_NS: Final = 10_000_000  # how long a vcpu runs before the console is looked at
SPIN: Final = 32  # PAUSEs, which take 4.5 µs; CPUs make a hypervisor look after 4096 cycles
HALVINGS: Final = 8  # of a slice of twice its length: a seed draws how many


# Turns.


def next_vcpu(domain: Domain, last: Vcpu, let_run: Collection[int] | None = None) -> Vcpu | None:
    """The vcpu whose turn it is after `last`, which has no other turn while another can run.

    `let_run` are those that may run; None: all. While the domain is paused, none may.
    """
    if domain.paused:
        return None
    after = last.vcpu_id + 1
    order = domain.vcpus[after:] + domain.vcpus[:after]
    if let_run is not None:
        order = [vcpu for vcpu in order if vcpu.vcpu_id in let_run]
    if domain.schedule.seed is None:
        for vcpu in order:
            if vcpu.runnable:
                return vcpu
        return None
    runnable = [vcpu for vcpu in order if vcpu.runnable]
    if runnable[1:] and runnable[-1] is last:
        runnable.pop()
    if runnable[1:]:
        return runnable[domain.schedule.below(len(runnable))]
    return runnable[0] if runnable else None


def begin_slice(current: Current, alone_ns: int) -> int:
    """How long the vcpu whose turn it is may run; `alone_ns` is for one that need not share.

    One that shares also gives its slice away by `SPIN` PAUSEs, because it spins until another vcpu
    has done something.
    """
    waiting = False
    for other in current.domain.vcpus:
        if other.online and not other.blocked:
            if waiting:
                current.cpu.leave_after_pauses(SPIN)
                return min(alone_ns, _shared_ns(current.domain.schedule))
            waiting = True
    current.cpu.leave_after_pauses(0)
    return alone_ns


def _shared_ns(schedule: Schedule) -> int:
    if schedule.seed is None:
        return schedule.shared_ns
    return max(1, schedule.below(2 * schedule.shared_ns) >> schedule.below(HALVINGS))


def give_way(current: Current) -> None:
    """Let a vcpu that the current one has made runnable have the CPU: now, or by a seed later."""
    domain, cpu = current.domain, current.cpu
    domain.reschedule = False
    if domain.schedule.seed is None or domain.schedule.below(2):
        cpu.stop()
        return
    _account_for_woken(domain, cpu.now_ns)
    cpu.leave_after_pauses(SPIN)
    cpu.limit(cpu.now_ns + _shared_ns(domain.schedule))


# Blocking.


def block(current: Current, poll_ports: frozenset[int] = NO_POLL) -> None:
    """Take the current vcpu off the CPU until `waking.wake`; the caller has looked for events."""
    vcpu = current.vcpu
    vcpu.blocked = True
    vcpu.poll_ports = poll_ports
    set_runstate(current.domain, vcpu, RunState.BLOCKED, current.cpu.now_ns)
    leave_cpu(current)


def bring_up(current: Current, vcpu: Vcpu) -> None:
    """Let a vcpu that is initialised and down run; the vcpu that asked gives way."""
    vcpu.online = current.domain.reschedule = True
    wait(current.domain, vcpu, current.cpu.now_ns)
    current.changed(vcpu, "up")


def take_down(current: Current, vcpu: Vcpu, why: str) -> None:
    """Let a vcpu run no more until it is brought up; with the last one, the domain powers off.

    `why` is a sentence for the person, in case that it is the last one.
    """
    vcpu.online = False
    set_runstate(current.domain, vcpu, RunState.OFFLINE, current.cpu.now_ns)
    current.changed(vcpu, "down")
    if vcpu is current.vcpu:
        leave_cpu(current)
    if not any(other.online for other in current.domain.vcpus):
        shutdown(current.domain, SHUTDOWN_poweroff, why)
        current.cpu.stop()


def leave_cpu(current: Current) -> None:
    """The current vcpu can run no more: end its slice. Its periodic timer stops until it can."""
    current.domain.timers.cancel((PERIODIC, current.vcpu.vcpu_id))
    current.cpu.stop()


def hypercall_preempt_check(current: Current) -> bool:
    """Whether a long hypercall is to be interrupted here: the vcpu has something else to do."""
    domain, vcpu = current.domain, current.vcpu
    return vcpu.blocked or domain.shutdown_code is not None or event_pending(domain, vcpu)


def enter(current: Current) -> None:
    """The current vcpu gets the CPU: account for it, and show the guest its runstate."""
    vcpu, now_ns = current.vcpu, current.cpu.now_ns
    _account_for_woken(current.domain, now_ns)
    set_runstate(current.domain, vcpu, RunState.RUNNING, now_ns)
    update_runstate_area(current)
    _go_on_ticking(current)


def leave(current: Current) -> None:
    """The current vcpu loses the CPU to another one: show the guest what it waits for."""
    vcpu, now_ns = current.vcpu, current.cpu.now_ns
    _account_for_woken(current.domain, now_ns)
    if vcpu.runstate is RunState.RUNNING:
        set_runstate(current.domain, vcpu, RunState.RUNNABLE, now_ns)
    current.domain.timers.cancel((PERIODIC, vcpu.vcpu_id))
    update_runstate_area(current)


def pause(current: Current) -> None:
    """Let no vcpu of the domain run until `unpause`; not while one runs.

    In Xen: common/domain.c (domain_pause_by_systemcontroller), common/sched/core.c
    (vcpu_sleep_nosync)
    """
    current.domain.paused = True
    _settle(current)
    current.domain.timers.cancel((PERIODIC, current.vcpu.vcpu_id))


def unpause(current: Current) -> None:
    """Let the vcpus that can run do so again."""
    current.domain.paused = False
    _settle(current)


def _settle(current: Current) -> None:
    for vcpu in current.domain.vcpus:
        if vcpu.online:
            wait(current.domain, vcpu, current.cpu.now_ns, current.domain.paused)


# Runstate.


def set_runstate(domain: Domain, vcpu: Vcpu, state: RunState, now_ns: int) -> None:
    """Enter a state, and add the time since the last change to the state that ends."""
    vcpu.runstate_times_ns[vcpu.runstate] += now_ns - vcpu.runstate_since_ns
    vcpu.runstate = state
    vcpu.runstate_since_ns = now_ns
    if domain.watch is not None:
        for observer in domain.watch:
            observer.runstate_changed(vcpu, now_ns)


def wait(domain: Domain, vcpu: Vcpu, now_ns: int, paused: bool = False) -> None:
    """Enter the state of a vcpu that does not run. One that went down while blocked stays blocked.

    `paused`: its domain is.

    In Xen: common/sched/core.c (vcpu_wake, vcpu_sleep_nosync_locked)
    """
    state = RunState.RUNNABLE if vcpu.online and not paused else RunState.OFFLINE
    state = RunState.BLOCKED if vcpu.blocked else state
    if vcpu.runstate is not state:
        set_runstate(domain, vcpu, state, now_ns)


def runstate_info(vcpu: Vcpu, now_ns: int) -> vcpu_runstate_info:
    """A vcpu's runstate as the guest sees it, with the times up to now."""
    times = list(vcpu.runstate_times_ns)
    times[vcpu.runstate] += now_ns - vcpu.runstate_since_ns
    return vcpu_runstate_info(vcpu.runstate, vcpu.runstate_since_ns, TIMES.pack(*times))


def update_runstate_area(current: Current) -> None:
    """Write the current vcpu's runstate into the area that it registered, if that is mapped now.

    The area has the times up to the last change of the state, and the time of that change. If the
    guest asked for it (VMASST_TYPE_runstate_update_flag), Xen marks that time with
    XEN_RUNSTATE_UPDATE while it writes. No vcpu runs during the write here, so a guest would never
    see the mark.
    """
    vcpu = current.vcpu
    if not vcpu.runstate_area:
        return
    try:
        packer = vcpu_runstate_info.layout(current.domain.shared_info_width).packer
        times = TIMES.pack(*vcpu.runstate_times_ns)
        info = packer.pack(vcpu.runstate, vcpu.runstate_since_ns, times)
        current.write(vcpu.runstate_area, info)
    except XenError:
        vcpu.areas_stale = True


def _account_for_woken(domain: Domain, now_ns: int) -> None:
    """Let vcpus that were woken wait from now on.

    Xen notes the instant of the waking. This is called when the vcpu that woke them gives way, or
    decides not to, which is the same instant.
    """
    for vcpu in domain.vcpus:
        if vcpu.runstate is RunState.BLOCKED:
            wait(domain, vcpu, now_ns, domain.paused)


# Timers and the end.


def _singleshot(current: Current, vcpu_id: int) -> None:
    event_channel.send_virq(current.domain, Virq.TIMER, vcpu_id)


def set_periodic_timer(current: Current, vcpu: Vcpu, period_ns: int) -> None:
    """Let VIRQ_TIMER come each time that a period has passed; 0 stops it.

    The timer stops while its vcpu is off the CPU. But if another vcpu starts it then, it ticks, and
    wakes its vcpu. In Xen: common/domain.c (vcpu_set_periodic_timer)
    """
    key, now_ns = (PERIODIC, vcpu.vcpu_id), current.cpu.now_ns
    vcpu.periodic_ns, vcpu.periodic_from_ns = period_ns, now_ns
    if period_ns:
        current.domain.timers.set(key, now_ns + period_ns)
    else:
        current.domain.timers.cancel(key)


def _periodic(current: Current, vcpu_id: int) -> None:
    vcpu = current.domain.vcpus[vcpu_id]
    event_channel.send_virq(current.domain, Virq.TIMER, vcpu_id)
    set_periodic_timer(current, vcpu, vcpu.periodic_ns)


def _go_on_ticking(current: Current) -> None:
    """The current vcpu got the CPU: a tick that was missed comes at once, the next one in time."""
    vcpu = current.vcpu
    due_ns = vcpu.periodic_from_ns + vcpu.periodic_ns
    if not vcpu.periodic_ns:
        return
    if current.cpu.now_ns >= due_ns:
        _periodic(current, vcpu.vcpu_id)
    else:
        current.domain.timers.set((PERIODIC, vcpu.vcpu_id), due_ns)


def _end_poll(current: Current, vcpu_id: int) -> None:
    wake(current.domain, current.domain.vcpus[vcpu_id])


def _watchdog(current: Current, _number: int) -> None:
    shutdown(current.domain, SHUTDOWN_watchdog)


TIMERS: Final[Owners] = {
    SINGLESHOT: _singleshot,
    PERIODIC: _periodic,
    POLL: _end_poll,
    WATCHDOG: _watchdog,
}


def shutdown(domain: Domain, reason: int, why: str = "") -> None:
    """Shut the domain down; the first reason counts, or the one that was chosen before.

    `why` is a sentence for the person, if the guest did not ask for the shutdown.
    """
    if domain.shutdown_code is None:
        domain.shutdown_why = why
    choose_shutdown_code(domain, reason)
    domain.shutdown_code = domain.chosen_shutdown_code


def resume(domain: Domain) -> None:
    """Let a domain that was shut down go on. In Xen: common/domain.c (domain_resume)."""
    domain.shutdown_code = domain.chosen_shutdown_code = None
    domain.shutdown_why = ""


def choose_shutdown_code(domain: Domain, reason: int) -> None:
    """Choose the reason of a shutdown to come, unless one is chosen."""
    if domain.chosen_shutdown_code is None:
        domain.chosen_shutdown_code = reason
