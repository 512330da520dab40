"""Workers that misbehave, for test_runner.py: each is a module's function, to be sent."""

from __future__ import annotations

import os
import signal
import time

from xenemu.smoke import copies, wire
from xenemu.smoke.copies import Copied
from xenemu.smoke.results import Result
from xenemu.smoke.verdict import Finding, Verdict
from xenemu.smoke.worker import AtSnapshot, Progress


def main(connection, boot, _kernel=None):
    """Do what the boot is called."""
    name = boot.name.rstrip(" 1234567890")
    if boot.is_origin:
        wire.send(connection, AtSnapshot())
        if name == "origin dies":
            os._exit(0)
        if name == "origin lies":
            connection.recv()
            wire.send(connection, Copied(1))
        born = copies.serve(connection)
        if born is None:
            return
        boot, connection = born
        name = boot.name
    if name == "repeats":
        wire.send(connection, AtSnapshot())
        time.sleep(1000)
    if name == "segv":
        os.write(2, b"the engine's last words")
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
