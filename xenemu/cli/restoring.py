"""``--restore``: a machine from a file in which Xen's tools, or we, have saved a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xenemu import entries, image
from xenemu.cli.guest import Load
from xenemu.dom0.bus import BusBackend
from xenemu.entries.platform import PV64_PLATFORM
from xenemu.errors import UsageError
from xenemu.machine import DomainConfig, Machine, life
from xenemu.machine.migration import envelope
from xenemu.machine.migration.envelope import Told
from xenemu.machine.migration.records import StreamError
from xenemu.machine.migration.saved import PvState, Saved
from xenemu.options import MAX_VCPUS, parse_name
from xenemu.records import dataclass


@dataclass
class Restored:
    """A guest that was saved in `file`; `kernel` is what it was booted from.

    `config` says what the file does not say, if xl did not write it.
    """

    file: Path
    saved: Saved
    kernel: Path
    mode: str
    config: DomainConfig
    away_ns: int
    is_shell: bool = False  # as the run was told that has saved it
    verb: str = "restoring"

    @classmethod
    def read(
        cls, file: Path, kernel: Path, mode: str, config: DomainConfig, away_ns: int
    ) -> Restored:
        """Read the file; UsageError says why it cannot be used."""
        saved, told = envelope.read_file(file)
        is_shell = told is not None and told.is_shell
        return cls(file, saved, kernel, mode, _configured(file, config, told), away_ns, is_shell)

    @property
    def memory(self) -> int:
        return self.config.memory

    def load(self) -> Load:
        loaded = image.load(self.kernel)
        return lambda: loaded

    def build(self, load: Load, devices: Sequence[BusBackend]) -> Machine:
        loaded = load()
        entry = entries.choose(loaded, self.mode)
        there, here = _kind(self.saved), _kind_of(entry)
        if there != here:
            raise UsageError(
                f"{self.file}: it is of a {there} domain, and {self.kernel} boots as {entry.name},"
                f" in a {here} one; was it another kernel, or another --mode?"
            )
        try:
            machine = life.revive(entry, self.saved, self.config, devices, self.away_ns)
        except StreamError as error:
            raise UsageError(f"{self.file}: {error}") from None
        machine.origin = loaded, self.config, self.mode  # for a guest that is to be restarted
        return machine


def _kind(saved: Saved) -> str:
    state = saved.state
    return f"{8 * state.width}-bit PV" if isinstance(state, PvState) else "PVH"


def _kind_of(entry: entries.Entry) -> str:
    if not entry.platform.paged:
        return "PVH"
    return "64-bit PV" if entry.platform is PV64_PLATFORM else "32-bit PV"


def _configured(file: Path, config: DomainConfig, told: Told | None) -> DomainConfig:
    if told is None:
        return config
    if told.maxvcpus > MAX_VCPUS:
        raise UsageError(f"{file}: it has {told.maxvcpus} vcpus; {MAX_VCPUS} are the most here")
    return replace(
        config,
        memory=told.target,
        maxmem=told.memory,
        name=parse_name(f"{file}: its name", told.name),
        uuid=told.uuid,
        vcpus=told.vcpus,
        maxvcpus=told.maxvcpus,
    )
