"""The files that --efi-root gives to EFI: a tree that nobody changes. Plain data.

Names are compared without regard to case, as on FAT, and keep the case that they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from xenemu.hv.building import Data
from xenemu.records import dataclass

SEPARATOR = "\\"


@dataclass(frozen=True)
class File:
    name: str
    data: Data


@dataclass(frozen=True)
class Directory:
    """`entries` are by their names in lower case, in the order of those."""

    name: str
    entries: dict[str, File | Directory] = field(default_factory=dict)

    def find(self, path: str) -> File | Directory | None:
        """What a path from here leads to, without ``..`` in it."""
        node: File | Directory | None = self
        for name in path.split(SEPARATOR):
            if name not in ("", "."):
                node = node.entries.get(name.lower()) if isinstance(node, Directory) else None
        return node

    def walk(self) -> Iterator[Directory]:
        """This directory and all below it; each comes before what is in it."""
        yield self
        for entry in self.entries.values():
            if isinstance(entry, Directory):
                yield from entry.walk()


def of_tree(tree: Mapping[str, Data]) -> Directory:
    """The root of a tree of files by path, with ``/``; a path that ends in it is a directory's."""
    root = Directory("")
    for path, data in sorted(tree.items(), key=lambda item: item[0].lower()):
        *parents, name = path.split("/")
        at = root
        for parent in parents:
            found = at.entries.setdefault(parent.lower(), Directory(parent))
            assert isinstance(found, Directory)
            at = found
        if name:
            at.entries[name.lower()] = File(name, data)
    return root


def resolve(start: str, path: str) -> str:
    """A path without ``.`` and ``..``, from the root; `path` begins there, or at `start`."""
    names: list[str] = []
    whole = path if path.startswith(SEPARATOR) else start + SEPARATOR + path
    for name in whole.split(SEPARATOR):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    return SEPARATOR.join(names)
