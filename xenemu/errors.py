"""Who is at fault: the guest, its image, the person at the terminal, or xenemu.

The type of an exception alone decides what happens to it:

* `XenError` goes to the guest as ``-errno``. Its reason goes to the log.
* `DomainCrash` ends the guest, as Xen's ``domain_crash()`` does.
* `ImageError`, `FitError`, `UsageError` and `OutputError` end the command with one line and an exit
  code.
* `NotModelled` and `EngineError` say that xenemu cannot do what is needed here.

Any other exception that escapes is a bug of xenemu's. The one exception is a host that has run out
of something.
"""

import errno
from collections.abc import Iterable
from itertools import islice
from typing import Final

MAX_NEAR: Final = 20_000  # names that are compared with a wrong one
MAX_NAME: Final = 64


class XenemuError(Exception):
    """Base of the errors that a person reads; `str()` is one line: what, where, what to do."""


class ImageError(XenemuError):
    """The kernel image cannot be used: truncated, wrong machine, contradictory notes."""


class FitError(ImageError):
    """The kernel, or what is to be loaded with it, does not fit in the guest's memory."""


class UsageError(XenemuError):
    """The command line asks for something that cannot be had."""


class NoSuchName(UsageError, KeyError, AttributeError):
    """There is no symbol, type, member or element of that name."""

    __str__ = Exception.__str__  # KeyError would quote the sentence


def meant(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have been meant to be, ``; did you mean X or Y?``; empty if nothing is.

    Only names that begin with the same letter, and are about as long, are looked at.
    """
    if len(name) > MAX_NAME:
        return ""
    import difflib  # noqa: PLC0415 - only mistakes need it

    near = (k for k in known if k[:1] == name[:1] and abs(len(k) - len(name)) <= 2)
    found = difflib.get_close_matches(name, dict.fromkeys(islice(near, MAX_NEAR)), 2, 0.8)
    return f"; did you mean {' or '.join(found)}?" if found else ""


class Unmapped(UsageError):
    """Nothing is mapped at an address of the guest's, or it is no RAM."""


class OutputError(XenemuError):
    """An output cannot be written, for example because the disk is full; it names the file."""


class EngineError(XenemuError):
    """The CPU engine is missing, is another version, or failed its self-check."""


class XenError(Exception):
    """A hypercall refused: the guest gets ``-errno``, the log gets the reason.

    `errno` is positive, from `xenemu.abi.errno`.
    """

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno
        self.reason = reason


class DomainCrash(Exception):
    """The hypervisor crashes the domain: `str()` names the rule that was broken.

    `advice` says what the guest's author can do or look at, where that is known.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


class EngineGaveUp(DomainCrash):
    """The CPU engine met a state that it was not made for, and cannot go on: its own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            reason,
            "a CPU would have raised an exception, or gone on: please report it, with the kernel;"
            " the registers may be those of a few instructions before",
        )


class NotModelled(DomainCrash):
    """The guest uses something of Xen's or the CPU's, rightly, that xenemu lacks."""


EXHAUSTION: Final = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM),
}


def exhaustion(error: Exception) -> str:
    """A sentence if the host has no more of something, be it disk, files, processes or memory.

    Else empty. Such an error is no bug, whatever part of xenemu meets it.
    """
    if not isinstance(error, OSError) or error.errno not in EXHAUSTION:
        return ""
    where = f"{error.filename}: " if error.filename else "this host has no more to give: "
    return f"{where}{error.strerror}"
