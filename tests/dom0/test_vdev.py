"""dom0/vdev: disks by name and number, as xen-vbd-interface has them."""

from __future__ import annotations

import pytest

from xenemu.dom0.vdev import free_name, number_of

NUMBERS = {
    "xvda": 51712, "xvda1": 51713, "xvdb": 51728, "xvdp15": 51967, "xvdq": 268439552,
    "xvda16": 268435472, "xvdaa": 268442112, "hda": 768, "hdb": 832, "hdc": 5632, "hdd3": 5699,
    "sda": 2048, "sdb1": 2065, "sdp15": 2303,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_name_has_its_number(name: str) -> None:
    assert number_of(name) == NUMBERS[name]


@pytest.mark.parametrize("name", ["", "xvd", "xvda256", "hde", "hda64", "sdq", "sda16", "vda", "x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=repr(name)):
        number_of(name)


def test_the_first_name_that_is_free() -> None:
    taken: set[str] = set()
    for _ in range(28):
        taken.add(free_name(taken))
    assert {"xvda", "xvdz", "xvdaa", "xvdab"} <= taken
    assert free_name(taken - {"xvdc"}) == "xvdc"
