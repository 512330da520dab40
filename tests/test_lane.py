"""The lane (cpu/native/lane.c) does what the model does, to the byte and to the count."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from test_snapshot import Script

from fuzz import fresh, runner
from fuzz.__main__ import make_world
from fuzz.world import WORK
from guests.build import ENVIRONMENTS, build, guests
from xenemu.abi.xen import DOMID_SELF, Nr, mmu_update
from xenemu.hv.building import DomainConfig
from xenemu.hv.frame_table import PGT_l1_page_table
from xenemu.image import load
from xenemu.machine import Machine
from xenemu.x86.paging import ADDR, PAGE_SHIFT, A, P

# The guests that come into their kernel and change page tables in many ways. All others end alike,
# too, and would take the suite a minute.
GUESTS = (
    "attack-iret", "attack-iret-frame", "attack-kernel-stack", "attack-linear-pt",
    "attack-multicall", "attack-pt-entries", "attack-writable-pt", "fast-syscall", "flat-selectors",
    "iret-step", "kernel-work", "micro-costs", "page-fault", "pv-iret", "pv-privilege", "pv-traps",
    "pv-writable-pt", "ring-switch", "segment-limits", "soft-int-faults", "stacks", "storm",
    "tlb-shootdown", "vcpu-context",
)  # fmt: skip
PV = [
    (name, kind)
    for name in GUESTS
    for kind in guests()[name].environments
    if ENVIRONMENTS[kind].mode == "pv"
]
LIVES, STEPS = range(1, 5), 250


def everything(machine: Machine) -> tuple[object, ...]:
    """What a guest, or somebody who reads a report, can see of a machine."""
    memory = machine.domain.memory
    calls = [
        (call.name, call.at_ns, call.rip, call.vcpu_id, call.args, call.result, call.reason)
        for call in machine.domain.calls
    ]
    typed_by = {
        mfn: call and (call.name, call.at_ns, call.rip, call.args, call.result)
        for mfn, call in machine.domain.frames.typed_by.items()
    }
    return (
        machine.engine.store(),
        machine.engine.statistics(),
        calls,
        typed_by,
        zlib.crc32(memory.bytes),
        zlib.crc32(memory.page_info),
    )


@pytest.mark.parametrize(("name", "kind"), PV)
def test_guests_end_alike(tmp_path: Path, name: str, kind: str) -> None:
    def end(fast: bool) -> tuple[object, ...]:
        machine = Machine(kernel, config, "pv")
        machine.engine.fast = fast
        terminal = Script(machine)
        outcome = machine.run(terminal)
        return (outcome, bytes(terminal.shown), *everything(machine))

    guest, environment = guests()[name], ENVIRONMENTS[kind]
    kernel = load(build(guest, environment, tmp_path / name))
    initrd = (guest.folder / guest.initrd).read_bytes() if guest.initrd else b""
    config = DomainConfig(64 << 20, guest.cmdline.encode(), initrd, vcpus=guest.vcpus)
    assert fresh.call(partial(end, True)) == fresh.call(partial(end, False))


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("kind", ["pv64", "pv32"])
def test_random_requests_have_the_same_effect(kind: str, vcpus: int) -> None:
    def after(steps: list[dict], fast: bool) -> Callable[[], tuple[object, ...]]:
        def run() -> tuple[object, ...]:
            world = make_world(kind, "engine", vcpus)
            engine = world.machine.engine
            engine.fast = fast
            before = engine._shim.lane.taken
            for step in steps:
                runner.attempt(world, step)
            return (*everything(world.machine), engine._shim.lane.taken - before)

        return run

    world, taken = make_world(kind, "engine", vcpus), 0
    for life in LIVES:
        _, steps = fresh.call(lambda life=life: runner.live(world, 21, life, STEPS))
        steps = [step for step in steps if step["kind"] != WORK]  # which the lane does not count
        *fast, calls = fresh.call(after(steps, fast=True))
        *slow, none = fresh.call(after(steps, fast=False))
        assert fast == slow
        assert none == 0
        taken += calls
    assert taken


def request(at: int, *requests: tuple[int, int]) -> dict:
    """mmu_update of these entries, told at an address."""
    data = b"".join(mmu_update(ptr, value).pack(8) for ptr, value in requests)
    args = [at, len(requests), 0, DOMID_SELF]
    return {"kind": "call", "number": Nr.mmu_update, "args": args, "data": [[at, data.hex()]]}


@pytest.mark.parametrize("kind", ["pv64", "pv32"])
def test_a_request_sees_what_those_before_it_did(kind: str) -> None:
    """All are looked at before the first is done: so none may change what another one means."""
    world = make_world(kind, "engine")
    domain, arena = world.current.domain, world.arena
    frames = [world.current.translate(world.current, arena + (n << 12), False) for n in range(4)]
    entries = {
        entry & ADDR: (table << PAGE_SHIFT | index << 3, entry)
        for table, used_as in enumerate(domain.frames.type)
        if used_as == PGT_l1_page_table
        for index, entry in enumerate(domain.memory.table(table).tolist())
        if entry & P
    }
    (own, own_entry), (second, second_entry), (other, other_entry) = (
        entries[frame] for frame in (frames[0], frames[2], frames[3])
    )
    crossing = arena + 2 * 4096 - mmu_update.sizeof(8)
    batches = {
        "takes another's page again": request(arena + 4096, (own, 0), (own, own_entry)),
        "is in a page that moves": request(crossing, (second, other_entry), (other, 0)),
        "is in a page whose marks change": request(crossing, (second, second_entry & ~A), (own, 0)),
    }

    def after(step: dict, fast: bool, foreign: bool) -> Callable[[], tuple[object, ...]]:
        def run() -> tuple[object, ...]:
            world.machine.engine.fast = fast
            if foreign:  # as a grant of another domain's is mapped
                domain.frames.owner[frames[0] >> PAGE_SHIFT] = domain.domid + 1
            domain.memory.words[second >> 3] &= ~A
            runner.attempt(world, step)
            return everything(world.machine)

        return run

    for what, step in batches.items():
        foreign = "another" in what
        fast, slow = (fresh.call(after(step, how, foreign)) for how in (True, False))
        assert fast == slow, what
