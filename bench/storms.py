"""How soon a limit and a signal get through to a guest that keeps the host busy: ``guests/storm``.

``python -m bench.storms`` lets each storm rage in each kind of guest, ends it in three ways, and
prints how many seconds of the wall clock that took. It fails if one took longer than `LIMIT_S`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from guests import build

GUEST: Final = "storm"
COMMON: Final = "hypercall multicall yield fault port cpuid msr step pause".split()
STORMS: Final = {
    "pv64": (*COMMON, "pin"),
    "pv32": (*COMMON, "pin"),
    "pvh64": (*COMMON, "mmio", "hole", "populate"),
}
ENDS_AFTER_S: Final = 2.0
LIMIT_S: Final = 2.5
WAYS: Final = {"--timeout": 6, "SIGINT": 130, "SIGTERM": 143}  # and their exit codes


def main() -> int:
    """Print a row for each storm; 1 if one could not be ended in time."""
    # A shell starts what it runs in the background deaf to SIGINT, and so would the guests be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    slowest = 0.0
    print(f"{'guest':<7} {'storm':<10} " + " ".join(f"{way:>9}" for way in WAYS))
    with tempfile.TemporaryDirectory() as scratch:
        for kind, storms in STORMS.items():
            image = build.build(
                build.guests()[GUEST], build.ENVIRONMENTS[kind], Path(scratch) / kind
            )
            for storm in storms:
                took = [_end(image, build.ENVIRONMENTS[kind].mode, storm, way) for way in WAYS]
                slowest = max(slowest, *took)
                print(f"{kind:<7} {storm:<10} " + " ".join(f"{s:8.2f}s" for s in took), flush=True)
    print(f"slowest: {slowest:.2f} s, of {LIMIT_S} s allowed")
    return slowest > LIMIT_S


def _end(image: Path, mode: str, storm: str, way: str) -> float:
    """Seconds from the guest's first words to its end, wanted `ENDS_AFTER_S` after them."""
    command = [sys.executable, "-m", "xenemu", "run", str(image), "--mode", mode]
    command += ["--memory", "64M", "--cmdline", storm]
    if way == "--timeout":
        command += [way, str(ENDS_AFTER_S)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        start = time.monotonic()
        if way != "--timeout":
            time.sleep(ENDS_AFTER_S)
            process.send_signal(signal.Signals[way])
        complaint = process.communicate()[1]
        took = time.monotonic() - start
    if process.returncode != WAYS[way]:
        raise SystemExit(f"{storm} by {way}: exit {process.returncode}: {complaint.decode()}")
    return took


if __name__ == "__main__":
    sys.exit(main())
