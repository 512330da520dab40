"""When a kernel was built, by its own banner.

In Linux: scripts/mkcompile_h, init/version-timestamp.c. The banner ends with the date that
`date` prints, in English, or, in a distribution's builds, with the date of the package.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from xenemu.image.loader import Image

BANNER: Final = re.compile(rb"(?:Linux version \d|(?:Free|Net|Open)BSD \d)[^\0\n]{0,400}")
MONTHS: Final = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
DATE: Final = re.compile(
    rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) ({'|'.join(MONTHS)}) +(\d\d?) (\d\d):(\d\d):(\d\d)"
    r"(?: (AM|PM))?(?: ([A-Z]{1,5}|[+-]\d\d))? (\d{4})"
)
DAY: Final = re.compile(r"\((\d{4})-(\d\d)-(\d\d)\)")
WEST: Final = timedelta(hours=12)  # of UTC: how far a zone of an unknown name may be


def built(image: Image) -> datetime | None:
    """A time that is not before the kernel was built, and a day after it at most; None: unknown."""
    texts = [image.payload.kernel_version] if image.payload else []
    texts += [found[0].decode("latin-1") for found in BANNER.finditer(image.elf)]
    return next(filter(None, map(_date_in, filter(None, texts))), None)


def _date_in(text: str) -> datetime | None:
    try:
        if found := DATE.search(text):
            month, day, hour, minute, second, half, zone, year = found.groups()
            hours = int(hour) % 12 + 12 * (half == "PM") if half else int(hour)
            date = int(year), MONTHS.index(month) + 1, int(day)
            when = datetime(*date, hours, int(minute), int(second), tzinfo=UTC)
            return when if zone in ("UTC", "GMT") else when + WEST
        if found := DAY.search(text):
            year, month, day = map(int, found.groups())
            return datetime(year, month, day, tzinfo=UTC) + timedelta(days=1)
    except ValueError:  # the 31st of February
        pass
    return None
