"""Everything put together: an image, an entry, a host, a CPU and the hypercalls make a machine."""

from __future__ import annotations

from hypercalls import TABLE
from xenemu.cpu.engine import DEFAULT_CACHE, MAX_CACHE, MIN_CACHE, Engine
from xenemu.cpu.shim import UNICORN_VERSION
from xenemu.hv.building import DomainConfig
from xenemu.hv.scheduler import SLICE_NS
from xenemu.machine.host import Host
from xenemu.machine.machine import Machine
from xenemu.machine.outside import Line, Source
from xenemu.machine.terminal import Limits, Terminal

__all__ = [
    "DEFAULT_CACHE",
    "MAX_CACHE",
    "MIN_CACHE",
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
    "limit_translations",
]


def limit_translations(size: int) -> None:
    """Let each engine that begins from now on keep at most `size` bytes of translated code."""
    Engine.translation_cache = size
