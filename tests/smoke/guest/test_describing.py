"""A guest in a program's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyguest import SPIN, kernel
from xenemu.errors import UsageError
from xenemu.smoke.guest.describing import Keys, describe
from xenemu.smoke.plan import READERS


def test_the_keys_are_those_of_a_plan():
    assert set(Keys.__annotations__) == set(READERS) - {"kernel", "from"}


def test_words_of_python_are_those_of_a_plan(tmp_path):
    (tmp_path / "kernel").write_bytes(kernel(SPIN))
    (tmp_path / "disk").write_bytes(bytes(512))
    boot = describe(
        "kernel",
        tmp_path,
        initrd=Path("disk"),
        disk=(Path("disk"),),
        expect=({"pattern": "a", "send": "b"},),
        environment={"A": "b"},
    )
    assert (boot.initrd, boot.disk) == (tmp_path / "disk", (str(tmp_path / "disk"),))
    assert boot.expect[0].send == "b"
    assert describe(boot, tmp_path) is boot
    with pytest.raises(UsageError, match=r"^mode: the boot kernel has been described already$"):
        describe(boot, tmp_path, mode="pv")
