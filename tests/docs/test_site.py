"""The documents as a site: every page is in its navigation, and links are right there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "site.py"


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_hook", SITE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_has_every_page_once(site):
    named = re.findall(r": ([\w.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(named) == sorted([*pages, *site.PAGES.values()])


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("[ci](docs/ci.md)", "[ci](ci.md)"),
        ("[row](docs/ci.md#a-row)", "[row](ci.md#a-row)"),
        ("[it](../README.md#install)", "[it](index.md#install)"),
        ("[it](CONTRIBUTING.md)", "[it](contributing.md)"),
        ("see [the license](LICENSE).", "see the license."),
        ("[main](../guests/hello/main.c)", "main"),
        ("[here](#install)", "[here](#install)"),
        ("[semver](https://semver.org/)", "[semver](https://semver.org/)"),
        ("[nothing](nowhere.md)", "[nothing](nowhere.md)"),
        ("[page](debian-6.1-entries.html)", "[page](debian-6.1-entries.html)"),
    ],
)
def test_links_lead_where_their_page_is(site, written, wanted):
    assert site.as_page(written) == wanted


def test_the_search_works_from_files_and_nothing_comes_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    page = tmp_path / "site" / "index.html"
    assert not re.search(r'<script[^>]*src="?http', page.read_text())
    shown = browser.opened(page, "?q=grant", "--virtual-time-budget=30000", home=tmp_path)
    assert re.search(r"[1-9][0-9]* matching documents", shown)
