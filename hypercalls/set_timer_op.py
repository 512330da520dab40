"""The one-shot timer of the current vcpu.

In Xen: common/sched/core.c (do_set_timer_op)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.xen import Nr
from xenemu.hv import scheduler
from xenemu.hv.current import Current
from xenemu.hv.dispatch import ALL, U64, Hypercall

NS_PER_MS: Final = 1_000_000
FAR_NS: Final = 1 << 50  # about 13 days
SIGN: Final = 1 << 63


def set_timer(current: Current, timeout_ns: int) -> int:
    """Raise VIRQ_TIMER at a system time; a past time, at once; 0 stops the timer.

    Old kernels ask for absurd times when their own arithmetic wraps: a time that is negative as a
    signed number, or more than 13 days ahead. Xen takes such a time for 100 ms from now.
    """
    key = (scheduler.SINGLESHOT, current.vcpu.vcpu_id)
    now_ns = current.cpu.now_ns
    if timeout_ns == 0:
        current.domain.timers.cancel(key)
        return 0
    if timeout_ns & SIGN or timeout_ns - now_ns >= FAR_NS:
        timeout_ns = now_ns + 100 * NS_PER_MS
    current.domain.timers.set(key, timeout_ns)
    return 0


set_timer_op = Hypercall(Nr.set_timer_op, "set_timer_op", ALL, (U64,), set_timer)
