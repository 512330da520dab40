"""The guests that attack: each refusal says its rule, and what the hypervisor holds stays true.

That no page table and no page of descriptors is mapped writable follows from the counts: a frame
has one type at a time. On a real Xen the guests are run with all others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pytest

from guests.build import ENVIRONMENTS, build, guests
from unattended import Unattended
from xenemu import image
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import Hypercall, format_result
from xenemu.hv.observe import Watch
from xenemu.machine import DomainConfig, Machine
from xenemu.options import parse_memory

GUESTS = {name: guest for name, guest in guests().items() if guest.attacks}
RUNS = [(name, env) for name, guest in GUESTS.items() for env in guest.environments]


@dataclass
class Journal(Observer):
    """What was refused, in order: sentences as the report has them, but for times and arguments."""

    sentences: list[str] = field(default_factory=list)

    def call_ends(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        if record.reason and record.result is not None:
            result = format_result(record.result)
            self.sentences.append(f"{record.name} = {result}: {record.reason}")

    def logged(self, current: Current, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.mark.parametrize(("name", "environment"), RUNS)
def test_attack(name, environment, tmp_path):
    guest = GUESTS[name]
    kernel = image.load(build(guest, ENVIRONMENTS[environment], tmp_path / name))
    memory = parse_memory("memory", guest.memory)
    config = DomainConfig(memory, guest.cmdline.encode(), vcpus=guest.vcpus)
    machine = Machine(kernel, config, ENVIRONMENTS[environment].mode)
    journal = Journal()
    Watch.of(machine.current).add(journal)
    terminal = Unattended()
    outcome = machine.run(terminal)

    assert terminal.shown.decode() == guest.expected(environment)
    assert outcome.exit_code == guest.exit, outcome.reason
    said = [f"crash: {outcome.reason}"] if guest.exit else []
    assert_each_matches([*journal.sentences, *said], guest.refusals(environment))
    assert machine.personality.audit(machine.domain) == []


def assert_each_matches(said: list[str], patterns: list[str]) -> None:
    """Each sentence matches the pattern that the one before it did, or the next; none is left."""
    left = deque(patterns)
    current = ""
    for sentence in said:
        if not fnmatchcase(sentence, current):
            assert left, sentence
            current = left.popleft()
            assert fnmatchcase(sentence, current)
    assert not left
