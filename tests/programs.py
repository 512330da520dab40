"""Programs of the host's that a test needs."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str) -> None:
    """Skip the test where there is no such program; with the environment variable CI, fail."""
    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"there is no {program}")
        pytest.skip(f"there is no {program}: apt-get install {program}")
