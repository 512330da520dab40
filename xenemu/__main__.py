"""The command: ``xenemu``, or ``python -m xenemu``.

Nothing is imported before a person can press Ctrl-C in peace: it takes half a second to import
the rest.
"""

import gc
import os
import signal
import sys
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    """End at once: there is nothing to put in order yet, or nothing any more."""
    os._exit(128 + signum)


def main() -> int:
    """Run the command, and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    gc.disable()  # until all is imported, which is never garbage
    from xenemu.cli.process import command  # noqa: PLC0415

    return command()


if __name__ == "__main__":
    sys.exit(main())
