"""The command: ``xenemu``, or ``python -m xenemu``.

Nothing is imported before a person can press Ctrl-C in peace: it takes half a second to import
the rest.
"""

import atexit
import gc
import os
import signal
import sys
import threading
from types import FrameType


def _leave(signum: int, frame: FrameType | None) -> None:
    """End at once: there is nothing to put in order yet, or nothing any more."""
    os._exit(128 + signum)


def main() -> int:
    """Run the command, and end the process with its exit code, which is returned if threads run.

    Python would free all memory piece by piece, for a tenth of a short run's time.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    gc.disable()  # until all is imported, which is never garbage
    from xenemu.cli.process import command  # noqa: PLC0415

    code = command()
    if threading.active_count() == 1:
        atexit._run_exitfuncs()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
