"""Every guest of guests/, in every environment it names: console and exit code, to the byte.

Whatever it did, the hypervisor's own books are right in the end.
"""

from __future__ import annotations

import pytest

from guests.build import ENVIRONMENTS, build, guests

GUESTS = guests()
RUNS = [(name, env) for name, guest in GUESTS.items() for env in guest.environments]
OUTCOMES = {"SUCCESS", "SKIP", "ERROR", "FAILURE"}


@pytest.mark.parametrize(("name", "environment"), RUNS)
def test_guest(name, environment, tmp_path, xenemu_run):
    guest = GUESTS[name]
    image = build(guest, ENVIRONMENTS[environment], tmp_path / name)
    initrd = ("--initrd", guest.folder / guest.initrd) if guest.initrd else ()
    result = xenemu_run(
        image,
        *initrd,
        *("--mode", ENVIRONMENTS[environment].mode),
        *("--memory", guest.memory),
        *("--cmdline", guest.cmdline),
        *("--timeout", str(guest.timeout)),
        *("--vcpus", str(guest.vcpus)),
        *("--audit", "1"),
        *guest.options,
    )
    console = result.stdout.decode()
    assert console == guest.expected(environment), result.stderr.decode()
    assert result.returncode == guest.exit, result.stderr.decode()


@pytest.mark.parametrize(("name", "environment"), RUNS)
def test_expected_console_ends_with_an_outcome(name, environment):
    last = GUESTS[name].expected(environment).splitlines()[-1]
    assert last.removeprefix("Test result: ") in OUTCOMES
