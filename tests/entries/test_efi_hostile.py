"""entries/efi: calls of a hostile guest: nothing but a status comes of them, whatever they pass."""

from __future__ import annotations

import random

import pytest
from efiguest import MIB, SCRATCH, EfiGuest
from pewriter import I386, X86_64, pe

from xenemu.entries.efi import abi, device_path
from xenemu.entries.efi.abi import BOOT_STUBS, RETURNS, RUNTIME_SERVICES, STUB_SIZE
from xenemu.entries.efi.width import IA32, X64
from xenemu.errors import DomainCrash, XenError
from xenemu.hv.cpu import Reg

STEPS = 1000
PROGRAM = SCRATCH + 0x8000
LEAVE = ("ExitBootServices", "ResetSystem", "Exit", *RETURNS)  # they end it: seldom


def hostile(chance: random.Random, guest, known: list[int]) -> int:
    """An argument: small, a pointer that is good, bad or at an edge, or what a service gave."""
    edges = [0, 1, 0xFFF, 64 * MIB - 1, 64 * MIB, 0xFC000000, 1 << 47, 1 << 63, (1 << 64) - 1]
    return chance.choice([
        lambda: chance.randrange(16),
        lambda: chance.choice(edges) - chance.randrange(16) & (1 << 64) - 1,
        lambda: SCRATCH + chance.randrange(0x8000),
        lambda: SCRATCH + 8 * chance.randrange(0x100),
        lambda: chance.getrandbits(64),
        lambda: 1 << chance.randrange(64),
        lambda: chance.choice(known),
        lambda: chance.choice(list(guest.efi.files) or [0]),
        lambda: chance.choice(list(guest.efi.handles) or [0]),
        lambda: chance.choice(list(guest.efi.events) or [0]),
    ])()  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_random_calls_end_in_a_status(load, seed):
    chance, guests, served = random.Random(seed), 0, set()
    guest = None
    for _ in range(STEPS):
        if guest is None:
            width = (X64, IA32)[guests % 2]
            guest = EfiGuest(load, width=width, initrd=bytes(5000), efi_root={"a/b": bytes(5000)})
            guests += 1
            known = [guest.system, guest.boot, guest.runtime, guest.image, 0x800000]
            known += open_and_load(guest, width)
            fill(chance, guest)
        name = chance.choice(BOOT_STUBS + RUNTIME_SERVICES)
        if name in LEAVE and chance.random() < 0.95:
            continue
        page = guest.efi.places.boot_code
        names: tuple[str, ...] = BOOT_STUBS
        if name in RUNTIME_SERVICES:
            page, names = guest.efi.places.runtime_code, RUNTIME_SERVICES
        args = [hostile(chance, guest, known) for _ in range(8)]
        stub = page + names.index(name) * STUB_SIZE
        try:
            guest.prepare(stub, *args)
        except (XenError, AssertionError):  # the guest has spoilt its tables, or the stub
            guest = None
            continue
        try:
            guest.exits.vmcall()
        except DomainCrash:
            guest = None
            continue
        served.add(name)
        known[chance.randrange(len(known))] = guest.cpu.regs[Reg.RAX]
        guest.domain.vcpus[0].blocked = False
        if guest.domain.shutdown_code is not None or not guest.efi.boot:
            guest = None
    assert guests < STEPS // 3 and len(served) > 50


def fill(chance: random.Random, guest) -> None:
    """Put into memory what makes calls get further: GUIDs, handles, strings, sizes."""
    guids = [abi.LOADED_IMAGE, abi.LOAD_FILE2, abi.DEVICE_PATH, abi.RNG, bytes(16)]
    guids += [abi.FILE_INFO, abi.SIMPLE_FILE_SYSTEM, abi.FILE_SYSTEM_INFO]
    for n in range(0, 0x800, 8):
        words = (*guest.efi.handles, *guest.efi.events, 0, 64, 4096, SCRATCH, 0xFFFFFFFF, 1 << 63)
        guest.put(SCRATCH + n, chance.choice(words))
    for n in range(0x800, 0x2000, 16):
        guest.guid(SCRATCH + n, chance.choice(guids))
    guest.text(SCRATCH + 0x3000, "Name")


def open_and_load(guest, width) -> list[int]:
    """Open the root, and put a program into memory; what leads to them."""
    volume = guest.find(abi.SIMPLE_FILE_SYSTEM)
    guest.jump(guest.native(volume + 8), volume, SCRATCH)
    program = pe(machine=X86_64 if width is X64 else I386)
    guest.current.write(PROGRAM, program)
    path = device_path.VOLUME + device_path.file_path("a\\b") + device_path.END
    guest.current.write(PROGRAM - 0x100, path)
    return [volume, guest.native(SCRATCH), PROGRAM, PROGRAM, PROGRAM - 0x100]
