"""A real browser, without a window: Debian's chromium, or its smaller chromium-headless-shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium-headless-shell", "chromium")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
TIMEOUT_S = 120  # for a browser that hangs


def opened(page: Path, query: str = "", *options: str, home: Path) -> str:
    """What the page is in the browser, after its script ran, as HTML.

    Without a browser, the test is skipped, but fails if the environment variable CI is set.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        lacking = "there is no browser: apt-get install chromium-headless-shell"
        if os.environ.get("CI"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    done = subprocess.run(
        [
            *(browser, *OPTIONS, f"--user-data-dir={home}", *options),
            *("--dump-dom", f"{page.resolve().as_uri()}{query}"),
        ],
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
        text=True,
        env=os.environ | {"HOME": str(home)},
    )
    return done.stdout
