"""A guest's memory and registers as a core file, for gdb, crash and drgn."""

from xenemu.dump.core import Core, write
from xenemu.dump.file import packed, save

__all__ = ["Core", "packed", "save", "write"]
