"""Scheduler operations: commands, their arguments, shutdown reasons.

Header: public/sched.h
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.layout import HANDLE, S32, U16, U32, U64, Struct

SCHEDOP_yield: Final = 0
SCHEDOP_block: Final = 1
SCHEDOP_shutdown: Final = 2
SCHEDOP_poll: Final = 3
SCHEDOP_remote_shutdown: Final = 4
SCHEDOP_shutdown_code: Final = 5
SCHEDOP_watchdog: Final = 6
SCHEDOP_pin_override: Final = 7

SHUTDOWN_poweroff: Final = 0
SHUTDOWN_reboot: Final = 1
SHUTDOWN_suspend: Final = 2
SHUTDOWN_crash: Final = 3
SHUTDOWN_watchdog: Final = 4
SHUTDOWN_soft_reset: Final = 5
SHUTDOWN_MAX: Final = 5


class sched_shutdown(Struct, size=(4, 4)):
    """Why the domain shuts down."""

    reason: U32


class sched_poll(Struct, size=(24, 16)):
    """Ports to wait for, and until when; 0 is for ever."""

    ports: HANDLE
    nr_ports: U32
    timeout: U64


class sched_remote_shutdown(Struct, size=(8, 8)):
    """Shut down another domain."""

    domain_id: U16
    reason: U32


class sched_watchdog(Struct, size=(8, 8)):
    """A watchdog (0: a new one) and its timeout in seconds (0: stop it)."""

    id: U32
    timeout: U32


class sched_pin_override(Struct, size=(4, 4)):
    """Pin the vcpu to a physical CPU (negative: undo)."""

    pcpu: S32
