"""What a test can have the toolstack do to its guest, a method each.

Each runs the guest until it has done its part, and raises `GuestFailed` if it has not in time:
`within` seconds of the guest's own time, or as many as libxl waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from xenemu.records import dataclass


class Asking(ABC):
    """A guest with a toolstack."""

    @abstractmethod
    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        """Have the toolstack do something; its answer."""

    def shutdown(self, how: str = "poweroff", within: float | None = None) -> None:
        """Ask it to end: poweroff, reboot, halt or suspend. It has acknowledged, but not ended."""
        self.ask("shutdown", how=how, within=within)

    def reboot(self, within: float | None = None) -> None:
        """Ask it to reboot."""
        self.shutdown("reboot", within)

    def suspend(self, within: float | None = None) -> None:
        """Ask it to suspend itself, and wait until it has.

        Then it does what the boot's `on_suspend` says; with ``end``, it waits for `resume`.
        """
        self.shutdown("suspend", within)

    def resume(self, how: str = "new") -> None:
        """Let it go on: in a new domain, or as if the suspend was called off (``cancel``)."""
        self.ask("resume", how=how)

    def sysrq(self, key: str, within: float | None = None) -> None:
        """Press SysRq and a key."""
        self.ask("sysrq", key=key, within=within)

    def nmi(self, vcpu: int = 0) -> None:
        """Send a vcpu an NMI."""
        self.ask("nmi", vcpu=vcpu)

    def pause(self) -> None:
        """Stop all vcpus."""
        self.ask("pause")

    def unpause(self) -> None:
        """Let them run again."""
        self.ask("unpause")

    def memory_target(self, size: str, within: float | None = None) -> int:
        """Have its balloon come to a size, such as ``128M``; the KiB that it has then."""
        return int(self.ask("memory", target=size, within=within)["has_kib"])

    def vcpu_online(self, number: int, within: float | None = None) -> None:
        """Have it bring a vcpu up."""
        self.ask("vcpu", number=number, state="online", within=within)

    def vcpu_offline(self, number: int, within: float | None = None) -> None:
        """Have it take a vcpu down."""
        self.ask("vcpu", number=number, state="offline", within=within)

    def attach(self, device: str, within: float | None = None) -> None:
        """Plug in a device that the boot has with the word ``later``, or that was detached."""
        self.ask("attach", device=device, within=within)

    def detach(self, device: str, within: float | None = None, force: bool = False) -> None:
        """Take a device from it."""
        self.ask("detach", device=device, within=within, force="yes" if force else None)

    def status(self) -> dict[str, Any]:
        """What it is doing, and what it has."""
        return self.ask("status")

    @property
    def xenstore(self) -> Xenstore:
        """The xenstore, as dom0 has it; relative paths are below the guest's own directory."""
        return Xenstore(self)


@dataclass(frozen=True)
class Xenstore:
    """A guest's xenstore; a character is a byte."""

    guest: Asking

    def read(self, path: str) -> str:
        """A node's value."""
        return str(self.guest.ask("xenstore", op="read", path=path)["value"])

    def write(self, path: str, value: str) -> None:
        """Set a node's value."""
        self.guest.ask("xenstore", op="write", path=path, value=value)

    def rm(self, path: str) -> None:
        """Remove a node, and all below it."""
        self.guest.ask("xenstore", op="rm", path=path)

    def ls(self, path: str) -> dict[str, str]:
        """A node and all below it: values by whole paths."""
        return dict(self.guest.ask("xenstore", op="ls", path=path)["nodes"])
