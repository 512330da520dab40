"""Where a guest spends its time, on a vcpu that exists only as registers."""

from __future__ import annotations

import pytest

from fakes import make_current, make_pv_current, make_pvh_current
from hypercalls import TABLE
from xenemu.hv.calls import CallRecord
from xenemu.sampling import ENOUGH, INTERVAL_NS, KEPT, Samples

YIELD, BLOCK, SET_TIMER = ("sched_op", (0, 0)), ("sched_op", (1, 0)), ("set_timer_op", (5,))
SPIN, DELAY, WORK = 0x10_0004, 0x20_0008, 0x30_0000


class Names:
    """A kernel's code: two functions, and much that has no name."""

    def format(self, vaddr):
        names = {SPIN: "spin_lock", DELAY: "delay_tsc"}
        return f"{names[vaddr]}+0x4/0x10" if vaddr in names else f"{vaddr:#x}"


class Guest:
    """A guest whose slices end where the test says."""

    def __init__(self, make=make_pv_current, **keys):
        self.current = make(**keys)
        self.current.table = TABLE
        self.samples = Samples()

    def run(self, rip, *calls, ns=INTERVAL_NS, times=1):
        """Run a slice of `ns` that makes `calls` and ends at `rip`; None: waiting."""
        cpu, domain = self.current.cpu, self.current.domain
        for _ in range(times):
            cpu.now_ns += ns
            for name, args in calls:
                domain.calls.append(CallRecord(cpu.now_ns, 0, 0, name, args))
            self.current.vcpu.blocked = rip is None
            cpu.rip = rip or 0
            self.samples.take(self.current)
        return self

    def lines(self):
        return self.samples.lines(Names())

    def pattern(self):
        return self.samples.pattern(self.current, Names())


def test_the_share_of_each_place():
    guest = Guest().run(DELAY, times=6).run(None, times=3).run(SPIN)
    assert guest.lines() == [
        "of the last 10 samples: 60% delay_tsc, 30% waiting for events, 10% spin_lock"
    ]


def test_a_program_has_no_names():
    guest = Guest()
    guest.current.vcpu.arch.kernel_mode = False
    assert guest.run(SPIN).lines() == ["of the last 1 samples: 100% in a program"]


def test_a_program_that_never_rests_is_named():
    guest = Guest()
    guest.current.vcpu.arch.kernel_mode = False
    guest.run(SPIN, times=9 * ENOUGH)
    guest.current.vcpu.arch.kernel_mode = True
    guest.run(WORK, times=ENOUGH)
    words = "with a program that runs nearly all the time, and silent in its last 1.000 s"
    assert guest.pattern() == words
    assert guest.run(WORK).pattern() == ""


def test_code_without_names_goes_by_its_address():
    guest = Guest(make_pvh_current).run(0x30_0010).run(0x30_00FF).run(0x30_0100)
    assert guest.lines() == ["of the last 3 samples: 67% 0x300000-0x3000ff, 33% 0x300100-0x3001ff"]


def test_five_places_are_shown():
    guest = Guest()
    for place in range(7):
        guest.run(WORK + 0x100 * place, times=7 - place)
    assert guest.lines()[0].endswith("11% 0x300400-0x3004ff, the rest in 2 other places")


def test_a_hypercalls_stub_is_its_callers():
    guest = Guest()
    memory, cpu = guest.current.domain.memory, guest.current.cpu
    stub, called_from = 0x2_1000, 0x2_2010
    memory.write(stub, b"\xc3")
    memory.write(called_from - 5, b"\xe8")
    memory.write(0x1_F000, called_from.to_bytes(8, "little"))
    cpu.regs[4] = 0x1_F000
    guest.current.domain.calls.append(CallRecord(0, 0, stub, "sched_op", (0, 0)))
    assert guest.run(stub).lines() == ["of the last 1 samples: 100% 0x22000-0x220ff"]


def test_short_slices_are_looked_at_no_more_often():
    guest = Guest().run(SPIN, ns=INTERVAL_NS // 100, times=1000)
    assert guest.lines() == ["of the last 10 samples: 100% spin_lock"]


def test_what_is_kept_is_bounded():
    guest = Guest().run(SPIN, times=KEPT).run(DELAY, times=KEPT)
    assert guest.lines() == [f"of the last {KEPT} samples: 100% delay_tsc"]


def test_each_vcpu_has_its_own_looks():
    """However regularly they take turns."""
    guest = Guest(vcpus=2)
    for number in range(200):
        guest.current.vcpu = guest.current.domain.vcpus[number % 2]
        guest.current.vcpu.online = True
        guest.run((SPIN, DELAY)[number % 2], ns=INTERVAL_NS // 10)
    assert guest.lines() == [
        "vcpu 0, of the last 20 samples: 100% spin_lock",
        "vcpu 1, of the last 20 samples: 100% delay_tsc",
    ]


# Patterns.


def test_a_loop():
    guest = Guest().run(DELAY, times=ENOUGH + 1)
    assert guest.pattern() == "in a loop in delay_tsc, and silent in its last 0.110 s"


def test_silence_may_be_longer_than_what_is_kept():
    guest = Guest().run(DELAY, times=3 * KEPT)
    assert guest.pattern() == "in a loop in delay_tsc, and silent in its last 7.680 s"


def test_a_loop_with_a_tick_is_no_livelock():
    guest = Guest().run(DELAY, SET_TIMER, times=100)
    assert guest.pattern().startswith("in a loop in delay_tsc")


def test_a_livelock():
    guest = Guest().run(SPIN, *[YIELD] * 128, SET_TIMER, times=11)
    assert guest.pattern() == (
        "in a livelock with nothing but sched_op(yield) and set_timer_op,"
        " and silent in its last 0.110 s"
    )


def test_waiting():
    guest = Guest().run(None, BLOCK, times=19).run(SPIN)
    assert guest.pattern() == "waiting nearly all the time, and silent in its last 0.200 s"


@pytest.mark.parametrize("spoken", [False, True])
def test_who_prints_gets_on(spoken):
    guest = Guest().run(SPIN, *[YIELD] * 128, times=100)
    if spoken:
        guest.samples.spoke(guest.current.cpu.now_ns)
    guest.run(SPIN, times=ENOUGH - 1)
    assert bool(guest.pattern()) is not spoken


def test_who_goes_to_many_places_gets_on():
    guest = Guest()
    for place in range(20):
        guest.run(WORK + 0x1000 * place, *[YIELD] * 128)
    assert not guest.pattern()


def test_many_kinds_of_hypercalls_are_no_livelock():
    calls = [(name, ()) for name in ("mmu_update", "iret", "xen_version", "set_gdt", "mca")] * 20
    assert Guest().run(SPIN, *calls, times=20).pattern().startswith("in a loop in spin_lock")


def of_several(vcpus, *turns):
    """Each vcpu in turn runs a slice, or waits (None)."""
    guest = Guest(vcpus=vcpus)
    for vcpu in guest.current.domain.vcpus:
        vcpu.online = True
    for _ in range(20):
        for vcpu, (rip, *calls) in zip(guest.current.domain.vcpus, turns, strict=True):
            guest.current.vcpu = vcpu
            made = [CallRecord(guest.current.cpu.now_ns, vcpu.vcpu_id, 0, *call) for call in calls]
            guest.current.domain.calls.own.extend(made)
            guest.run(rip, ns=INTERVAL_NS // vcpus)
    return guest


def test_the_vcpus_that_are_busy_with_little_are_named():
    guest = of_several(3, (None,), (DELAY,), (SPIN, *[YIELD] * 64))
    assert guest.pattern() == (
        "with vcpu 1 in a loop in delay_tsc and vcpu 2 in a livelock with nothing but"
        " sched_op(yield), and silent in its last 0.200 s"
    )
    alike = of_several(2, (DELAY,), (DELAY,)).pattern()
    assert alike.startswith("with vcpu 0 and vcpu 1 in a loop in delay_tsc, and silent in")


def test_vcpus_wait_if_all_do():
    words = of_several(2, (None,), (None,)).pattern()
    assert words == "waiting nearly all the time, and silent in its last 0.200 s"
    guest = of_several(2, (None,), (None,))
    for place in range(20):
        guest.run(WORK + 0x1000 * place)
    assert not guest.pattern()


def test_one_that_blocked_long_ago_waits():
    """It has had few looks since, as looks come when it has the CPU."""
    guest = of_several(2, (None,), (None,))
    guest.samples.of_vcpu[1].clear()
    assert guest.pattern().startswith("waiting nearly all the time")


def test_few_looks_have_no_pattern():
    assert not Guest(make_current).pattern()
    assert not Guest().run(DELAY, times=ENOUGH - 1).pattern()
