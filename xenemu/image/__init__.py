"""From a kernel file's bytes to an `Image`: what it is, and what it wants."""

from xenemu.image.loader import Image, Payload, Segment, SymbolFile, load, load_later
from xenemu.image.notes import DraftNotes, Feature, Note, XenNotes
from xenemu.image.separate import Separated, build_id, with_symbols

__all__ = [
    "DraftNotes",
    "Feature",
    "Image",
    "Note",
    "Payload",
    "Segment",
    "Separated",
    "SymbolFile",
    "XenNotes",
    "build_id",
    "load",
    "load_later",
    "with_symbols",
]
