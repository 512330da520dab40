"""cli/one_way: when a guest cannot go back."""

from __future__ import annotations

from xenemu.cli.one_way import one_way
from xenemu.disks import parse_disk


def disks(*texts):
    return [parse_disk("--disk", text) for text in texts]


def test_what_outlives_the_run_is_not_taken_back(tmp_path):
    path = tmp_path / "disk.img"
    assert one_way(disks(str(path)), []) == ""
    for text, named in (
        (f"{path},rw", "leave rw out"),
        (f"{path},overlay=o", "leave overlay= out"),
    ):
        assert named in one_way(disks(str(path), text), [])
    assert "--share" in one_way([], ["a share"])
