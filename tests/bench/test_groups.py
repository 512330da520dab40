"""Tables of groups that are more than a line for each row."""

from __future__ import annotations

from bench import boots, matrix, scaling, shim, vcpus
from bench.rows import Figures


def lines(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_boots_have_a_ratio_to_the_faster_peer_of_the_same_boot():
    def all_of(seconds):
        return {name: [seconds] for name, _ in boots.COLUMNS}

    names = (boots.ours("PV, vmlinux"), *boots.peers("PV, vmlinux"))
    samples = {name: all_of(s) for name, s in zip(names, (3, 8, 6), strict=True)}
    found = lines(boots.GROUP.table(Figures(samples)))
    assert ["PV, vmlinux", "Xen in newest QEMU", *["6.00"] * 4, "6"] in found
    assert ["PV, vmlinux", "xenemu / the faster", *["0.50"] * 5] in found


def test_vcpus_have_the_ratio_of_cpu_seconds():
    cost = {"CPU s with 1": [2, 9, 4], "CPU s with 4": [5], "wall s with 4": [2.5]}
    *_, line = lines(vcpus.GROUP.table(Figures({"xenemu, PV": cost})))
    assert line == ["xenemu, PV", "4.00", "5.00", "1.25", "2.50"]


def test_qemu_runs_its_vcpus_on_the_threads_that_the_row_says(monkeypatch):
    monkeypatch.setattr(vcpus.qemu, "installed", lambda: vcpus.qemu.Qemu("QEMU", "7.2", ("qemu",)))
    for thread in ("single", "multi"):
        command = vcpus.SUBJECTS[f"QEMU, {thread}-threaded"](4)
        assert f"tcg,thread={thread}" in command and command[command.index("-smp") + 1] == "4"


def test_a_matrix_has_smokes_part_of_the_single_runs():
    samples = {matrix.many("hello"): {matrix.ONE: [8.0], matrix.SMOKE: [2.0]}}
    *_, line = lines(matrix.GROUP.table(Figures(samples)))
    assert line == ["20 boots of hello", "8.0", "2.0", "0.25"]


def test_kernels_are_compared_with_themselves_in_a_real_xen():
    seconds = {shim.HERE: 1, shim.THERE: 4}
    costs = {f"{shim.GRUB32}: {where}": {shim.CPU: [s]} for where, s in seconds.items()}
    assert [shim.GRUB32, "1.00", "4.00", "0.25"] in lines(shim.GROUP.table(Figures(costs)))


def test_sizes_and_numbers_are_tables_of_their_own():
    samples = {"96 MiB": {scaling.CALL: [4.0]}, "2 at once": {scaling.WALL["PV"]: [3.0]}}
    sizes, numbers = scaling.GROUP.table(Figures(samples)).split("Boots that run")
    assert "96 MiB" in sizes and "2 at once" not in sizes
    assert "2 at once" in numbers and "96 MiB" not in numbers
