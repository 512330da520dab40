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
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xenemu.outputs import Folder
    from xenemu.smoke.guest import Guest
    from xenemu.smoke.plan import Boot

GUESTS = pytest.StashKey["_Guests"]()  # of a test
USED = pytest.StashKey[bool]()  # there were guests in this session
WRITTEN = pytest.StashKey[set[Path]]()  # in this session


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
    from xenemu.smoke.guest import Guest, close_all  # noqa: PLC0415 - every pytest loads this
    from xenemu.smoke.guest.describing import describe  # noqa: PLC0415

    if not request.config.stash.get(USED, False):
        request.config.stash[USED] = True
        request.config.add_cleanup(close_all)
    guests = request.node.stash[GUESTS] = _Guests(request)

    def boot(kernel: Boot | str | Path, **keys: Any) -> Guest:
        __tracebackhide__ = True
        what = describe(kernel, request.path.parent, **keys)
        guests.claim_log()
        guests.append(Guest(what))
        guests[-1].keeps_console = guests.has_logs
        return guests[-1]

    yield boot
    guests.end()


@pytest.fixture
def guest(request: pytest.FixtureRequest, boot: Callable[..., Guest]) -> Guest:
    """The guest that the test's marker describes: ``@pytest.mark.xenemu(kernel, **keys)``."""
    from xenemu.errors import XenemuError  # noqa: PLC0415

    marker = request.node.get_closest_marker("xenemu")
    if marker is None or len(marker.args) + ("kernel" in marker.kwargs) != 1:
        wrong = 'the fixture guest wants a kernel: @pytest.mark.xenemu("vmlinuz", mode="pvh")'
    else:
        try:
            return boot(*marker.args, **marker.kwargs)
        except XenemuError as error:
            wrong = f"@pytest.mark.xenemu: {error}"
    path, line, _ = request.node.location
    pytest.fail(f"{path}:{line + 1}: {wrong}", pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, Any, None]:
    """Add the consoles of a test's guests to a failure, whatever it was that failed."""
    outcome = yield
    report = outcome.get_result()
    guests = item.stash.get(GUESTS, None)
    if guests is not None and report.failed and call.excinfo and call.when != "teardown":
        report.sections += guests.sections(str(call.excinfo.value))
        crash = getattr(report.longrepr, "reprcrash", None)
        if crash is not None:  # the summary has it: on CI in full, a console and all, once more
            crash.message = crash.message.partition("\n")[0]


class _Guests(list["Guest"]):
    """The guests of a test, and their logs."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        folder = request.config.getoption("--xenemu-log-dir")
        self._logs = None if folder is None else _Logs(folder, request)

    @property
    def has_logs(self) -> bool:
        return self._logs is not None

    def claim_log(self) -> None:
        """Say before the next guest boots that its log cannot be written."""
        if self._logs is not None:
            self._logs.claim(str(len(self) + 1))

    def numbered(self) -> Iterator[tuple[str, Guest]]:
        """Each guest with its number, and copies of guest 1 as 1.1, 1.2 and so on."""
        left = [(str(number), guest) for number, guest in enumerate(self, 1)]
        while left:
            number, guest = left.pop(0)
            yield number, guest
            left[:0] = [(f"{number}.{one}", copy) for one, copy in enumerate(guest.copies, 1)]

    def sections(self, said: str) -> list[tuple[str, str]]:
        """A heading and a text for each; the end of its console, unless that is `said`."""
        found = []
        for number, guest in self.numbered():
            if guest.is_closed and not guest.keeps_console:
                continue
            lines = _tail(guest)
            if "\n".join(lines) in said:
                lines = []
            if self._logs is not None:
                lines.append(f"(all of it is in {self._logs.path(number)})")
            if lines:
                which = f"{guest.boot}, copy {number}" if "." in number else str(guest.boot)
                found.append((f"xenemu: console of {which}", "\n".join(lines)))
        return found

    def end(self) -> None:
        """Write the logs, and end the processes."""
        for number, guest in list(self.numbered()):
            if self._logs is not None:
                self._logs.write(number, guest)
            guest.close()


def _tail(guest: Guest) -> list[str]:
    from xenemu.smoke.ending import console_end  # noqa: PLC0415

    try:
        return console_end(guest.console) or ["(it has printed nothing)"]
    except RuntimeError as error:
        return [f"({str(error).splitlines()[0]})"]


class _Logs:
    """The consoles of a test's guests, in files that must be new or empty."""

    def __init__(self, path: Path, request: pytest.FixtureRequest) -> None:
        self._folder = path
        self._name = re.sub(r"[^\w.+-]+", "-", request.node.nodeid).strip("-.")
        self._written = request.config.stash.setdefault(WRITTEN, set())

    def claim(self, number: str) -> None:
        """Fail the test if the log cannot be written."""
        path = self.path(number)
        if path in self._written:  # the test runs again, for one with pytest-rerunfailures
            path.unlink(missing_ok=True)
        with _failing():
            self._open(path.name)

    def write(self, number: str, guest: Guest) -> None:
        """Write the console; a guest whose process has gone has none, and the test said so."""
        path = self.path(number)
        if "." in number:  # nobody knew of the copy before
            self.claim(number)
        with _failing(), suppress(RuntimeError):
            self._open().write(path.name, guest.console)
            self._written.add(path)

    def _open(self, *names: str) -> Folder:
        from xenemu.outputs import Outputs  # noqa: PLC0415

        return Outputs().folder("--xenemu-log-dir", self._folder, names)

    def path(self, number: str) -> Path:
        """The file of a guest."""
        return self._folder / f"{self._name}-{number}.log"


@contextmanager
def _failing() -> Iterator[None]:
    """Fail the test for a person's mistake, with one line."""
    from xenemu.errors import XenemuError  # noqa: PLC0415

    try:
        yield
    except XenemuError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
