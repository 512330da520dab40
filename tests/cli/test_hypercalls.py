"""`xenemu hypercalls`: the table as it is declared."""

from __future__ import annotations

import json

import pytest

from xenemu import cli
from xenemu.machine import TABLE


@pytest.fixture
def printed(capsys):
    def printed(*options):
        assert cli.main(["hypercalls", *options]) == 0
        return capsys.readouterr().out

    return printed


def test_every_row_in_number_order(printed):
    rows = json.loads(printed("--json"))
    assert [row["number"] for row in rows] == sorted(TABLE.rows)


def test_who_may_call_and_what_is_answered(printed):
    rows = {row["name"]: row for row in json.loads(printed("--json"))}
    assert rows["mmu_update"]["callers"] == ["pv64", "pv32"]
    assert rows["mmu_update"]["implemented"] is True
    assert (rows["domctl"]["implemented"], rows["domctl"]["answer"]) == (False, "EPERM")
    assert rows["domctl"]["note"]


def test_sub_operations_have_numbers_and_c_names(printed):
    rows = {row["name"]: row for row in json.loads(printed("--json"))}
    operations = {one["name"]: one for one in rows["sched_op"]["operations"]}
    assert operations["yield"]["number"] == 0
    assert operations["shutdown"]["implemented"] is True


def test_text_has_columns_and_counts(printed):
    lines = printed().splitlines()
    assert lines[0].split() == ["nr", "hypercall", "pv64", "pv32", "pvh64", "pvh32", "answer"]
    assert "  1  mmu_update " in "\n".join(lines)
    total = len(TABLE.rows)
    refused = sum(bool(row.note) for row in TABLE.rows.values())
    share = 100 * (total - refused) // total
    assert lines[-2].startswith(
        f"hypercalls: {total - refused} of {total} implemented ({share}%),"
        f" {refused} refused as Xen refuses them; "
    )
    assert lines[-1].startswith("sub-operations: ")


def test_a_divergence_is_shown_where_it_is(printed):
    rows = {row["name"]: row for row in json.loads(printed("--json"))}
    operations = {one["name"]: one for one in rows["memory_op"]["operations"]}
    told = operations["machphys_compat_mfn_list"]["diverges"]
    assert told == TABLE.rows[12].operations[25].diverges != ""
    [line] = [line for line in printed().splitlines() if " machphys_compat_mfn_list " in line]
    assert line.endswith(f"DIVERGES: {told}")
    assert operations["maximum_gpfn"]["diverges"] == ""
