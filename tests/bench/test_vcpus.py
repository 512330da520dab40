"""bench/vcpus.py: what is booted, and the table."""

from __future__ import annotations

from bench.measure import EXIT, Cost, Run
from bench.vcpus import SUBJECTS, table


def test_each_way_is_measured_with_one_vcpu_and_with_four():
    names = {subject.name for subject in SUBJECTS}
    assert {(s.name, s.vcpus) for s in SUBJECTS} == {(name, n) for name in names for n in (1, 4)}
    commands = {(s.name, s.vcpus): s.command for s in SUBJECTS}
    for thread in ("single", "multi"):
        command = commands[f"QEMU, {thread}-threaded", 4]
        assert f"tcg,thread={thread}" in command and command[command.index("-smp") + 1] == "4"


def test_table_has_medians_and_the_ratio_of_cpu_seconds():
    def runs(*seconds: float) -> list[Run]:
        return [Run({EXIT: Cost(s, s / 2)}, 0) for s in seconds]

    one, four = SUBJECTS[:2]
    *_, line = table({one: runs(2, 9, 4), four: runs(5, 5)}).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("xenemu, PV", "4.00", "5.00"),
        *("1.25", "2.50"),
    ]
