"""Fixtures for all: a kernel's code, guest images, and `xenemu run` as a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import elfwriter
from guests import fetch
from xenemu import image
from xenemu.peek import Code

# No test goes by the clock, and each run is the same: what is random is `make fuzz`.
settings.register_profile(
    "xenemu", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("xenemu")

# A shell starts its background jobs deaf to SIGINT, nohup its command to SIGHUP. What tests start
# would inherit that, and wait for ever for the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def code(tmp_path: Path) -> Code:
    """The code of a kernel without symbols."""
    path = tmp_path / "kernel"
    path.write_bytes(elfwriter.kernel())
    return Code(image.load(path))


@pytest.fixture
def load(tmp_path: Path) -> Callable[[bytes], image.Image]:
    """Return a function that makes an image of a file's bytes."""

    def load(data: bytes) -> image.Image:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        return image.load(path)

    return load


@pytest.fixture(scope="session")
def guest_image() -> Callable[[str], Path]:
    """Return a function from the name of an image in guests/images.toml to its path.

    Without the image, the test is skipped, by name, on a developer's machine. It fails if the
    environment variable CI is set.
    """

    def find(name: str) -> Path:
        assert name in fetch.declared(), f"guests/images.toml has no {name}"
        entry = fetch.cached(name)
        if entry:
            return entry.path
        lacking = f"guest image {name} is not in the cache: make guests"
        if os.environ.get("CI"):
            pytest.fail(lacking)
        pytest.skip(lacking)

    return find


@pytest.fixture(scope="session")
def xenemu_run() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Return a function that runs ``xenemu run ARGUMENTS...`` on the given standard input.

    The time limit is for a xenemu that hangs, not for a guest: use ``--timeout`` for that.
    """

    def run(
        *arguments: str | Path, stdin: bytes = b"", timeout: float = 600
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "xenemu", "run", *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    return run
