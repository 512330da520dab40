"""Workers that misbehave, for test_runner.py: each is a module's function, so that it spawns."""

from __future__ import annotations

import os
import signal
import time

from xenemu.smoke import wire
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.worker import Progress


def main(boot, connection, errors):
    """Do what the boot is called."""
    name = boot.name.rstrip(" 1234567890")
    if name == "segv":
        with open(errors, "w") as file:
            file.write("the engine's last words")
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit":
        os._exit(3)
    if name == "stuck":
        time.sleep(1000)
    if name == "pickles":
        connection.send(Progress("hello", 1, 2))
        time.sleep(1000)
    if name == "stalls":
        os.write(connection.fileno(), b"\0")
        time.sleep(1000)
    if name == "hangs up":
        connection.close()
        time.sleep(1000)
    if name == "polite":
        signal.sigwait([signal.SIGTERM])
        wire.send(connection, Progress("hello", 1, 2))
    if name in ("polite", "stopped"):
        finding = Finding(Verdict.XENEMU, "told to stop")
        wire.send(connection, Result(boot, [finding], log="it was here", stopped=True))
        return
    wire.send(connection, Progress("hello", 1, 2))
    result = Result(boot, reason="it ended")
    if name == "bad":
        result.findings = [Finding(Verdict.PANIC, "no root")]
    wire.send(connection, result)
