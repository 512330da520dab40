"""What the fuzzer once found stays mended: each file was a failure, minimised."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.__main__ import load
from fuzz.minimise import replay

FOUND = sorted((Path(__file__).parent / "regressions").glob("*.json"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_it_does_not_fail_any_more(path):
    failure = replay(*load(path))
    assert failure is None, failure.detail
