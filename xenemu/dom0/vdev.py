"""Names of a guest's disks, such as xvda, and the numbers that the xenbus has for them.

In Xen: docs/man/xen-vbd-interface.7.pandoc; tools/libs/light/libxl_device.c
(libxl__device_disk_dev_number)
"""

from __future__ import annotations

import re
from itertools import count
from typing import Final

XVD, HD, SD = "xvd", "hd", "sd"
NAME: Final = re.compile(r"(xvd|hd|sd)([a-z]{1,3})([0-9]{0,3})", re.ASCII)
MOST_DISKS: Final = 1 << 20  # numbers of the extended form
XVD_MAJOR, SD_MAJOR = 202, 8
HD_MAJORS: Final = (3, 22)  # two disks each


def number_of(name: str) -> int:
    """The number of a disk or partition by its name in the guest; ValueError if it has none."""
    match = NAME.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} is no name of a disk: give one such as xvda")
    kind, letters, digits = match.groups()
    disk, partition = letters_to_number(letters), int(digits or 0)
    if kind == HD and disk < 2 * len(HD_MAJORS) and partition < 64:
        return HD_MAJORS[disk // 2] << 8 | (disk % 2) << 6 | partition
    if kind == SD and disk < 16 and partition < 16:
        return SD_MAJOR << 8 | disk << 4 | partition
    if kind == XVD and disk < 16 and partition < 16:
        return XVD_MAJOR << 8 | disk << 4 | partition
    if kind == XVD and disk < MOST_DISKS and partition < 256:
        return 1 << 28 | disk << 8 | partition
    raise ValueError(f"{name!r}: the xenbus has no number for it")


def letters_to_number(letters: str) -> int:
    """``a`` is 0, ``z`` 25, ``aa`` 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def free_name(taken: set[str]) -> str:
    """The first of xvda, xvdb, ... that is not taken."""
    return next(name for n in count() if (name := XVD + _letters(n)) not in taken)


def _letters(number: int) -> str:
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(ord("a") + digit) + text
    return text
