"""From a kernel file's bytes to an `Image`: what it is, what it wants, how it can boot."""

from xenemu.image.loader import Image, Payload, Segment, SymbolFile, load
from xenemu.image.modes import (
    Mode,
    PvhParameters,
    PvParameters,
    Verdict,
    modes,
    pv_parameters,
    pvh_parameters,
)
from xenemu.image.notes import Feature, Note, XenNotes
from xenemu.image.separate import Separated, build_id, with_symbols

__all__ = [
    "Feature",
    "Image",
    "Mode",
    "Note",
    "Payload",
    "PvParameters",
    "PvhParameters",
    "Segment",
    "Separated",
    "SymbolFile",
    "Verdict",
    "XenNotes",
    "build_id",
    "load",
    "modes",
    "pv_parameters",
    "pvh_parameters",
    "with_symbols",
]
