"""What a way into a kernel is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from xenemu.entries.judging import NoNote, Unbootable
from xenemu.entries.platform import PlacedT, Platform, RoomT
from xenemu.errors import ImageError, UsageError
from xenemu.hv.building import DomainConfig, Where
from xenemu.hv.current import Current
from xenemu.hv.state.domain import Domain
from xenemu.image import Image
from xenemu.records import dataclass


class Kernel(Protocol):
    """What judging an image settles: at least where it goes."""

    @property
    def where(self) -> Where: ...


KernelT = TypeVar("KernelT", bound=Kernel)


@dataclass(frozen=True)
class Verdict:
    """Whether an entry can boot an image: where it goes, or one sentence why it cannot."""

    where: Where | None
    reason: str = ""

    @property
    def bootable(self) -> bool:
        return self.where is not None


@dataclass(frozen=True, eq=False)
class BootEntry(Generic[KernelT, RoomT, PlacedT]):
    """A way into a kernel.

    * `judge` says what the entry needs to know of an image, or raises `Unbootable`.
    * `place` finds room on the platform for the kernel and for all that the kernel is told. It
      touches nothing.
    * `start` loads the first registers of vcpu 0.
    * `name` is the entry's name in reports and JSON.
    * `mode` is what a person asks for. Several entries may share one mode: the first that can boot
      the image is taken.
    """

    name: str
    mode: str
    platform: Platform[KernelT, RoomT, PlacedT]
    judge: Callable[[Image], KernelT]
    place: Callable[[Image, KernelT, DomainConfig, RoomT], PlacedT]
    start: Callable[[Current], None]
    zero_page: bool = False  # it has a boot_params, for --subarch
    efi: bool = False  # it has an EFI, for --efi-root

    def verdict(self, image: Image) -> Verdict:
        """Whether the entry can boot an image."""
        try:
            return Verdict(self.judge(image).where)
        except Unbootable as why:
            return Verdict(None, _reason(image, why))

    def build(self, image: Image, config: DomainConfig) -> Domain:
        """Build the domain; ImageError if the image will not do, FitError if its memory will not.

        UsageError: `config` asks for something that the entry cannot have.
        """
        try:
            kernel = self.judge(image)
        except Unbootable as why:
            reason = _reason(image, why)
            raise ImageError(f"{image.path}: cannot boot as {self.name}: {reason}") from None
        if config.subarch is not None and not self.zero_page:
            raise UsageError(
                f"--subarch: {self.name} has no boot_params; linux32 and linux64 have one"
            )
        if config.efi_root is not None and not self.efi:
            raise UsageError(f"--efi-root: {self.name} has no EFI; efi and efi32 have one")
        room = self.platform.make_room(config, kernel)
        placed = self.place(image, kernel, config, room)
        return self.platform.build(config, room, placed)


def _reason(image: Image, why: Unbootable) -> str:
    if isinstance(why, NoNote) and image.notes.lost:
        return f"{why}; Xen does not find all notes: see `xenemu inspect`"
    return str(why)
