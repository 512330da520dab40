"""pytest-xenemu: fixtures that boot guests, each in a process of its own.

::

    def test_userland(boot):
        guest = boot("vmlinuz", mode="pvh", init="test.sh", cmdline="console=hvc0")
        version = guest.expect(r"Linux version (\\S+)").groups[0]
        guest.finish()

    @pytest.mark.xenemu("grub-x86_64-xen.bin")
    def test_grub(guest):
        guest.expect("grub> ")
        guest.sendline("ls")
        guest.expect(r"\\(memdisk\\)")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xenemu.smoke.guest import Guest
    from xenemu.smoke.plan import Boot


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    parser.getgroup("xenemu").addoption(
        "--xenemu-log-dir",
        type=Path,
        metavar="DIR",
        help="write the console of each guest here, with the guest's time",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", "xenemu(kernel, **keys): what the fixture `guest` boots; keys as of [[boot]]"
    )


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Callable[..., Guest]]:
    """A function that boots a guest: of a kernel and the keys of ``[[boot]]``, or of a `Boot`.

    Paths are relative to the test's file. What it boots is ended with the test.
    """
    from xenemu.smoke.guest import Guest  # noqa: PLC0415 - every run of pytest loads this module
    from xenemu.smoke.plan import Boot, make_boots  # noqa: PLC0415

    guests: list[Guest] = []

    def boot(what: Boot | str | Path, **keys: Any) -> Guest:
        if not isinstance(what, Boot):
            given = {key: str(v) if isinstance(v, Path) else v for key, v in keys.items()}
            (what,) = make_boots({**given, "kernel": str(what)}, request.path.parent)
        guests.append(Guest(what))
        return guests[-1]

    yield boot
    folder = request.config.getoption("--xenemu-log-dir")
    for number, guest in enumerate(guests, 1):
        if folder is not None:
            _write_log(folder, f"{request.node.nodeid}-{number}", guest)
        guest.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, boot: Callable[..., Guest]) -> Guest:
    """The guest that the test's marker describes: ``@pytest.mark.xenemu(kernel, **keys)``."""
    marker = request.node.get_closest_marker("xenemu")
    if marker is None:
        raise pytest.UsageError("the fixture guest wants @pytest.mark.xenemu(kernel, ...)")
    return boot(*marker.args, **marker.kwargs)


def _write_log(folder: Path, name: str, guest: Guest) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.+-]+", "-", name).strip("-.") + ".log")
    with suppress(RuntimeError):  # its process is no more, and the test has said so
        path.write_text(guest.console)
