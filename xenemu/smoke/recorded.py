"""A boot's recording, by which `xenemu replay` repeats it on somebody else's desk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Final

from xenemu.dom0.bus import BusBackend
from xenemu.dom0.net import Vif
from xenemu.dom0.p9 import Share
from xenemu.errors import UsageError
from xenemu.hv.building import DomainConfig
from xenemu.machine import Machine
from xenemu.machine.outside import Outside
from xenemu.recording.events import Changed, place
from xenemu.recording.file import Header, Writer
from xenemu.recording.recorder import Recorder
from xenemu.recording.start import start_of
from xenemu.records import dataclass
from xenemu.smoke.plan import SUSPENDED_FOR_NS, Boot

MOST: Final = 32 << 20  # bytes; what comes after is as if the boot had been killed


@dataclass
class Recorded:
    """A recording in memory, so that a copy of a booted guest has its own."""

    data: bytearray = field(default_factory=bytearray)
    outside: Callable[..., Outside] = Outside
    _recorder: Recorder | None = None
    _is_full: bool = False

    @classmethod
    def begin(
        cls,
        boot: Boot,
        config: DomainConfig,
        machine: Machine,
        devices: Sequence[BusBackend],
        vifs: Sequence[Vif],
    ) -> Recorded:
        """Record a guest that is to be booted; nothing, if it cannot be booted so again."""
        recorded = cls()
        shares = [device for device in devices if isinstance(device, Share)]
        made_of = {name: getattr(boot, name) for name in ("initrd", "init", "rootfs", "busybox")}
        try:
            is_kept = boot.on_suspend == "end" and boot.do  # for a deed that resumes it
            on_suspend = "preserve" if is_kept else boot.on_suspend
            start = start_of(
                boot.kernel,
                boot.mode,
                config,
                ramdisk=made_of,
                modules=boot.module,
                efi_root=boot.efi_root,
                disks=boot.disk,
                shares=shares,
                vifs=vifs,
                on_suspend=(on_suspend, SUSPENDED_FOR_NS),
            )
        except UsageError:  # such as a kernel that is a pipe
            return recorded
        recorder = Recorder(Writer(recorded._put, Header(start=start)))
        for share in shares:
            recorder.hear(machine, share)
        recorded.outside, recorded._recorder = recorder.outside, recorder
        return recorded

    def _put(self, data: bytes) -> None:
        self._is_full = self._is_full or len(self.data) + len(data) > MOST
        if not self._is_full:
            self.data += data

    def change(self, machine: Machine, boot: Boot, origin: Boot) -> None:
        """Note what a boot changes that begins as a copy of another one's guest."""
        if self._recorder is not None:
            schedule = (boot.slice, boot.schedule_seed)
            changed = schedule != (origin.slice, origin.schedule_seed)
            seed = boot.rng_seed if boot.rng_seed != origin.rng_seed else None
            self._recorder.writer.note(
                Changed(*place(machine), schedule if changed else None, seed)
            )
