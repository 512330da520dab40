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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xenemu.outputs import Folder
    from xenemu.smoke.guest import Guest
    from xenemu.smoke.plan import Boot

WRITTEN = pytest.StashKey[set[Path]]()


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
        if logs is not None:
            logs.claim(len(guests) + 1)
        guests.append(Guest(what))
        return guests[-1]

    folder = request.config.getoption("--xenemu-log-dir")
    logs = None if folder is None else _Logs(folder, request)
    yield boot
    for number, guest in enumerate(guests, 1):
        if logs is not None:
            logs.write(number, guest)
        guest.close()


@pytest.fixture
def guest(request: pytest.FixtureRequest, boot: Callable[..., Guest]) -> Guest:
    """The guest that the test's marker describes: ``@pytest.mark.xenemu(kernel, **keys)``."""
    marker = request.node.get_closest_marker("xenemu")
    if marker is None:
        raise pytest.UsageError("the fixture guest wants @pytest.mark.xenemu(kernel, ...)")
    return boot(*marker.args, **marker.kwargs)


class _Logs:
    """The consoles of a test's guests, in files that must be new or empty."""

    def __init__(self, path: Path, request: pytest.FixtureRequest) -> None:
        self._path = path
        self._name = re.sub(r"[^\w.+-]+", "-", request.node.nodeid).strip("-.")
        self._written = request.config.stash.setdefault(WRITTEN, set())  # in this session

    def claim(self, number: int) -> None:
        """Say before the guest boots that its log cannot be written."""
        path = self._path / self._file(number)
        if path in self._written:  # the test runs again, for one with pytest-rerunfailures
            path.unlink(missing_ok=True)
        with _failing():
            self._folder(path.name)

    def write(self, number: int, guest: Guest) -> None:
        """Write the console; one whose process is no more has none, and the test has said so."""
        name = self._file(number)
        with _failing(), suppress(RuntimeError):
            self._folder().write(name, guest.console)
            self._written.add(self._path / name)

    def _folder(self, *names: str) -> Folder:
        from xenemu.outputs import Outputs  # noqa: PLC0415

        return Outputs().folder("--xenemu-log-dir", self._path, names)

    def _file(self, number: int) -> str:
        return f"{self._name}-{number}.log"


@contextmanager
def _failing() -> Iterator[None]:
    """Fail the test for a person's mistake, with one line."""
    from xenemu.errors import XenemuError  # noqa: PLC0415

    try:
        yield
    except XenemuError as error:
        pytest.fail(str(error), pytrace=False)
