"""What a test can have the toolstack do to its guest, a method each.

Each runs the guest until it has done its part, and raises `GuestFailed` if it has not in time:
`within` seconds of the guest's own time, or as many as libxl waits. UsageError for what no guest
can be asked for, or not this one now.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from xenemu.records import dataclass
from xenemu.smoke.guest.checking import Plain, Text, Wait, checked


class Asking(ABC):
    """A guest with a toolstack."""

    @abstractmethod
    def ask(self, do: str, **fields: Plain) -> dict[str, Any]:
        """Have the toolstack do something; its answer."""

    @checked
    def shutdown(self, how: Text = "poweroff", within: Wait | None = None) -> None:
        """Ask it to end: poweroff, reboot, halt or suspend. It has acknowledged, but not ended."""
        self.ask("shutdown", how=how, within=within)

    @checked
    def reboot(self, within: Wait | None = None) -> None:
        """Ask it to reboot."""
        self.shutdown("reboot", within)

    @checked
    def suspend(self, within: Wait | None = None) -> None:
        """Ask it to suspend itself, and wait until it has.

        Then it does what the boot's `on_suspend` says; with ``end``, it waits for `resume`.
        """
        self.shutdown("suspend", within)

    @checked
    def resume(self, how: Text = "new") -> None:
        """Let it go on: in a new domain, or as if the suspend was called off (``cancel``)."""
        self.ask("resume", how=how)

    @checked
    def sysrq(self, key: Text, within: Wait | None = None) -> None:
        """Press SysRq and a key."""
        self.ask("sysrq", key=key, within=within)

    @checked
    def nmi(self, vcpu: int = 0) -> None:
        """Send a vcpu an NMI."""
        self.ask("nmi", vcpu=vcpu)

    def pause(self) -> None:
        """Stop all vcpus."""
        self.ask("pause")

    def unpause(self) -> None:
        """Let them run again."""
        self.ask("unpause")

    @checked
    def memory_target(self, size: Text, within: Wait | None = None) -> int:
        """Have its balloon come to a size, such as ``128M``; the KiB that it has then."""
        return int(self.ask("memory", target=size, within=within)["has_kib"])

    @checked
    def vcpu_online(self, number: int, within: Wait | None = None) -> None:
        """Have it bring a vcpu up."""
        self.ask("vcpu", number=number, state="online", within=within)

    @checked
    def vcpu_offline(self, number: int, within: Wait | None = None) -> None:
        """Have it take a vcpu down."""
        self.ask("vcpu", number=number, state="offline", within=within)

    @checked
    def attach(self, device: Text, within: Wait | None = None) -> None:
        """Plug in a device that the boot has with the word ``later``, or that was detached."""
        self.ask("attach", device=device, within=within)

    @checked
    def detach(self, device: Text, within: Wait | None = None, force: bool = False) -> None:
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

    @checked
    def read(self, path: Text) -> str:
        """A node's value."""
        return str(self.guest.ask("xenstore", op="read", path=path)["value"])

    @checked
    def write(self, path: Text, value: Text) -> None:
        """Set a node's value."""
        self.guest.ask("xenstore", op="write", path=path, value=value)

    @checked
    def rm(self, path: Text) -> None:
        """Remove a node, and all below it."""
        self.guest.ask("xenstore", op="rm", path=path)

    @checked
    def ls(self, path: Text) -> dict[str, str]:
        """A node and all below it: values by whole paths."""
        return dict(self.guest.ask("xenstore", op="ls", path=path)["nodes"])
