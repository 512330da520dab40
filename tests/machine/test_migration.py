"""machine/migration and machine/life, with guests that suspend themselves: saved and restored."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
import savedguests
from savedguests import CONFIG, KINDS, SECOND_NS, entry_of, revive, stream, suspended, to_the_end

from xenemu.abi.arch_x86.xen import arch_shared_info
from xenemu.abi.xen import start_info
from xenemu.dom0.xenstore_model import Connection
from xenemu.errors import DomainCrash
from xenemu.hv.shared_info import field
from xenemu.machine import Machine, life
from xenemu.machine.migration import envelope, pv_save
from xenemu.machine.migration.records import StreamError
from xenemu.outcome import End
from xenemu.pv import descriptors

FLIPS = 40  # of each kind; `python tests/machine/test_migration.py 1000` does more
TWICE = "the hypercall returned 0\nthe hypercall returned {}\nTest result: SUCCESS\n"


@pytest.mark.parametrize("kind", KINDS)
def test_xens_own_checker_has_nothing_to_say(guest_image, tmp_path, kind):
    """Debian's verify-stream-v2, on all that is written but the pages' content."""
    tree = guest_image("xen-utils")
    file = tmp_path / "saved"
    file.write_bytes(stream(kind))
    command = [sys.executable, tree / "bin/verify-stream-v2", "-v", "-f", "xl", "-i", file]
    environment = {"PYTHONPATH": str(tree / "lib/python")}
    checked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    kinds = {"pv64": "64bit guest, 4 levels", "pv32": "32bit guest, 3 levels"}
    assert kinds.get(kind, "Libxc Record: HVM context") in checked.stdout
    file.write_bytes(stream(kind)[:-100])
    checked = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert checked.returncode


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_goes_on_in_another_machine(kind):
    machine = revive(kind, stream(kind))
    assert machine.personality.audit(machine.domain) == []
    assert machine.domain.incarnation == 2
    assert to_the_end(machine) == (End.POWEROFF, TWICE.format(1))
    assert machine.personality.audit(machine.domain) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_goes_on_in_a_new_domain_of_the_same_machine(kind):
    machine = savedguests.make(kind)
    domains = []

    def renew(machine):
        before = machine.domain.events
        life.renew(machine, SECOND_NS)
        domains.append(machine.domain.domid)
        assert machine.domain.events is not before
        assert machine.personality.audit(machine.domain) == []
        assert list(machine.host.domains) == [machine.domain.domid]

    end, shown = to_the_end(machine, renew)
    assert (end, domains) == (End.POWEROFF, [2, 3])
    assert shown.endswith(TWICE.format(0))
    assert machine.engine.now_ns > 2 * SECOND_NS


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_goes_back_across_a_suspend(kind):
    """To before it, in the old domain, and to after it, in the new one; and in another machine."""
    machine = suspended(kind)
    before = machine.snapshot()
    life.renew(machine, SECOND_NS)
    after = machine.snapshot()
    ends = []
    for snapshot, domid in ((None, 2), (after, 2), (before, 1), (after, 2)):
        if snapshot is not None:
            machine.restore(snapshot)
        assert list(machine.host.domains) == [machine.domain.domid] == [domid]
        assert machine.personality.audit(machine.domain) == []
        if domid == 1:
            life.renew(machine, SECOND_NS)
        ends.append((to_the_end(machine), machine.engine.instructions, machine.engine.now_ns))
    other = Machine.revive(after)
    ends.append((to_the_end(other), other.engine.instructions, other.engine.now_ns))
    assert ends == [ends[0]] * 5
    assert ends[0][0] == (End.POWEROFF, TWICE.format(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_domain_may_come_to_as_much_memory(kind):
    machine = suspended(kind, replace(CONFIG, maxmem=8 << 20))
    before = nodes_of(machine), machine.domain.memory.nr_frames
    life.renew(machine, 0)
    assert (nodes_of(machine), machine.domain.memory.nr_frames) == before
    assert before[0] == (b"4096", b"8192", (4 << 20 >> 12) + 256)
    assert machine.personality.audit(machine.domain) == []


def nodes_of(machine):
    domid, read = machine.domain.domid, machine.host.store.read
    memory = f"/local/domain/{domid}/memory"
    nodes = [read(Connection(0), f"{memory}/{name}") for name in ("target", "static-max")]
    return (*nodes, machine.domain.pages.max_pages)


def test_the_frames_of_a_pv_guest_are_others():
    machine = suspended("pv64")
    before = pv_save.PhysicalToMachine.of(machine.domain).mfns
    life.renew(machine, 0)
    told = arch_shared_info(
        max_pfn=len(before),
        pfn_to_mfn_frame_list_list=0,
        nmi_reason=0,
        p2m_cr3=machine.engine.cr3,
        p2m_vaddr=start_info_of(machine).mfn_list,
        p2m_generation=0,
        wc_sec_hi=b"",
    )
    machine.domain.memory.write(field(machine.domain, "arch"), told.pack(8))
    after = pv_save.PhysicalToMachine.of(machine.domain).mfns
    assert after.keys() == before.keys()
    assert sum(after[pfn] == mfn for pfn, mfn in before.items()) <= 1


def start_info_of(machine):
    mfn = machine.engine.regs[2]  # the hypercall's third argument
    return start_info.unpack(8, machine.domain.memory.read(mfn << 12, start_info.sizeof(8)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_guest_is_saved_as_the_same_bytes(kind):
    written = bytearray()
    envelope.write(written.extend, life.save(suspended(kind)), savedguests.TOLD)
    assert bytes(written) == stream(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_restored_is_saved_as_it_was(kind):
    """But for what a restore changes: the time, the incarnation, rings, ports and start_info."""
    first, _ = envelope.read(memoryview(stream(kind)))
    machine = life.revive(entry_of(kind), first, CONFIG, (), 0)
    machine.exits.stopped()
    if kind != "pvh64":
        return
    again = life.save(machine)
    assert again.state.params == first.state.params
    changed = [gfn for gfn, page in first.pages.data.items() if page != again.pages.data[gfn]]
    assert again.pages.data.keys() == first.pages.data.keys()
    assert set(changed) <= {first.state.params[1], first.state.params[17]}
    assert len(again.state.context) == len(first.state.context)


@pytest.mark.parametrize("kind", KINDS)
def test_a_suspend_that_is_called_off_changes_nothing(kind):
    machine = suspended(kind)
    events, memory = machine.domain.events, bytes(machine.domain.memory.bytes)
    life.cancel(machine)
    assert machine.domain.shutdown_code is None
    assert machine.engine.regs[0] == 1
    assert machine.domain.events is events
    assert bytes(machine.domain.memory.bytes) == memory


def test_a_pvh_guest_without_a_callback_sees_no_cancel():
    machine = suspended("pvh64")
    machine.domain.arch.params.pop(0, None)
    life.cancel(machine)
    assert machine.engine.regs[0] == 0


# What cannot be saved.


def damaged(change) -> str:
    """Why a guest cannot be saved after a change, which has not changed anything else."""
    machine = suspended("pv64")
    change(machine)
    domain = machine.domain
    with pytest.raises(StreamError) as refused:
        life.renew(machine, 0)
    assert machine.domain is domain and domain.backends
    return str(refused.value)


def test_a_guest_that_lies_about_its_memory_is_not_saved():
    def set_arch(**values):
        def change(machine):
            at = field(machine.domain, "arch")
            told = arch_shared_info.unpack(8, machine.domain.memory.read(at, 48))
            for name, value in values.items():
                setattr(told, name, value)
            machine.domain.memory.write(at, told.pack(8))

        return change

    assert "says that it has 0 pfns" in damaged(set_arch(max_pfn=0))
    assert "pfns (shared_info" in damaged(set_arch(max_pfn=1 << 60))
    assert "list_list is mfn" in damaged(set_arch(pfn_to_mfn_frame_list_list=1 << 40))
    assert "list_list is mfn" in damaged(set_arch(pfn_to_mfn_frame_list_list=0))
    assert "a table that maps its p2m is" in damaged(set_arch(p2m_cr3=1 << 40, p2m_vaddr=1))

    def no_start_info(machine):
        machine.engine.regs[2] = 1

    assert "the start_info that it gave" in damaged(no_start_info)


def test_a_domain_whose_rings_dom0_cannot_map_is_crashed():
    """Its GDT is where start_info says that its console is."""
    machine = suspended("pv64", replace(CONFIG, memory=8 << 20))
    mfn = machine.engine.regs[2]
    pfns = pv_save.PhysicalToMachine.of(machine.domain).pfns
    page = next(m for m in pfns if not machine.domain.frames.type_count[m])
    machine.domain.memory.clear_frame(page)
    descriptors.set_gdt(machine.current, [page], 16)
    at = (mfn << 12) + start_info.offsetof("console", 8)
    machine.domain.memory.write(at, pfns[page].to_bytes(8, "little"))
    with pytest.raises(DomainCrash, match="dom0 cannot map its ring"):
        life.renew(machine, 0)


# Streams that are damaged.


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_stream_is_refused(kind):
    whole = stream(kind)
    ends = {*range(0, 800, 7), *range(len(whole) - 12_000, len(whole), 97), len(whole) - 1}
    for end in sorted(ends):
        with pytest.raises(StreamError):
            revive(kind, whole[:end])
    with pytest.raises(StreamError, match="1 bytes follow"):
        revive(kind, whole + b"\0")


def flip(kind: str, seed: int) -> bytes:
    """A stream with a bit changed; half of them outside of pages."""
    draw = random.Random(seed)
    data = bytearray(stream(kind))
    near = (range(1000), range(len(data) - 12_000, len(data)), range(len(data)))
    at = draw.choice(draw.choice(near))
    data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def outcome_of(kind: str, seed: int) -> str:
    """What comes of it: it is refused, or it is a guest that runs to some end."""
    try:
        machine = revive(kind, flip(kind, seed))
    except StreamError:
        return "refused"
    assert machine.personality.audit(machine.domain) == []
    end, _ = to_the_end(machine)
    return end.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_with_a_flipped_bit_is_refused_or_is_a_guest(kind):
    found = {outcome_of(kind, seed) for seed in range(FLIPS)}
    assert {"refused", "poweroff"} <= found


if __name__ == "__main__":
    for kind in KINDS:
        ends = [outcome_of(kind, seed) for seed in range(int(sys.argv[1]))]
        print(kind, {end: ends.count(end) for end in sorted(set(ends))})
