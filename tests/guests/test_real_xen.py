"""The PV guests on a real Xen 4.17: Debian's xen-shim, itself a PVH guest of ours.

What a guest finds right on xenemu it must find right on Xen, so that its expectations are Xen's
and not our own. The shim builds the domain by itself: only the verdict is compared.
"""

from __future__ import annotations

import pytest

from guests.build import ENVIRONMENTS, build, guests

GUESTS = guests()
RUNS = [
    (name, environment)
    for name, guest in GUESTS.items()
    for environment in guest.environments
    if ENVIRONMENTS[environment].mode == "pv"
]


@pytest.mark.parametrize(("name", "environment"), RUNS)
def test_a_real_xen_agrees(name, environment, tmp_path, guest_image, xenemu_run):
    guest = GUESTS[name]
    kernel = build(guest, ENVIRONMENTS[environment], tmp_path / name)
    result = xenemu_run(
        guest_image("xen-shim"),
        *("--mode", "pvh", "--memory", "256M", "--timeout", "120"),
        *("--initrd", kernel, "--cmdline", "pv-shim console=pv"),
    )
    console = result.stdout.decode(errors="replace")
    verdict = guest.expected(environment).splitlines()[-1]
    assert "Xen version 4.17" in console, result.stderr.decode()
    assert verdict in console.splitlines(), console + result.stderr.decode()
