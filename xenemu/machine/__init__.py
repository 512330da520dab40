"""Everything put together: an image, an entry, a host, a CPU and the hypercalls make a machine."""

from __future__ import annotations

from hypercalls import TABLE
from xenemu.cpu.shim import UNICORN_VERSION
from xenemu.hv.building import DomainConfig
from xenemu.hv.scheduler import SLICE_NS
from xenemu.machine.host import Host
from xenemu.machine.machine import Machine
from xenemu.machine.outside import Line, Source
from xenemu.machine.terminal import Limits, Terminal

__all__ = [
    "SLICE_NS",
    "TABLE",
    "UNICORN_VERSION",
    "DomainConfig",
    "Host",
    "Limits",
    "Line",
    "Machine",
    "Source",
    "Terminal",
]
