"""A hook of mkdocs: the documents of the top level become pages beside those of docs/.

README.md is the first page. A link to a page stays a link between pages. A link to another file of
the project has no page to lead to, and becomes plain text. A link to nothing stays as it is, for
mkdocs to tell.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages; mkdocs calls this once it has found those of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 (mkdocs alone imports this file)

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / name).read_text())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Mend the links of a page of docs/; mkdocs calls this for every page."""
    return as_page(markdown)


def as_page(text: str) -> str:
    """A document, with links that are right where its page is."""

    def mend(link: re.Match[str]) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        if "://" in target:
            return link[0]
        name = target.removeprefix("../").removeprefix("docs/")
        name = PAGES.get(name, name)
        is_elsewhere = not (ROOT / "docs" / name).exists() and (ROOT / name).exists()
        return words if is_elsewhere else f"[{words}]({name}{anchor})"

    return LINK.sub(mend, text)
