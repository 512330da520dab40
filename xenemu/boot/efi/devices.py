"""What the firmware has by way of devices: the initial ramdisk, and random numbers.

UEFI specification 2.10, sections 13.2 (LoadFile2) and 37.5 (RNG). In Linux:
drivers/firmware/efi/libstub/efi-stub-helper.c
"""

from __future__ import annotations

import hashlib
from typing import Final

from xenemu.boot.efi.abi import RNG_ALGORITHM_RAW, Status
from xenemu.boot.efi.call import Call, check, needed, service

MAX_RANDOM: Final = 1 << 20  # bytes at a time


@service("LoadFile2.LoadFile", "NNBNN")
def load_file(call: Call, this: int, path: int, boot: int, size_at: int, buffer: int) -> None:
    check(path and size_at, Status.INVALID_PARAMETER, "a pointer is null")
    check(not boot, Status.UNSUPPORTED, "LoadFile2 is not for boot options")
    initrd = call.firmware.initrd
    room = call.read_word(size_at)
    call.write_word(size_at, len(initrd))
    enough = buffer and room >= len(initrd)
    check(enough, Status.BUFFER_TOO_SMALL, f"the initrd has {len(initrd)} bytes")
    call.write(buffer, initrd)


@service("Rng.GetInfo", "NNN")
def get_info(call: Call, this: int, size_at: int, list_at: int) -> None:
    room = call.read_word(needed(size_at))
    call.write_word(size_at, len(RNG_ALGORITHM_RAW))
    check(room >= len(RNG_ALGORITHM_RAW), Status.BUFFER_TOO_SMALL, "there is one algorithm")
    call.write(needed(list_at), RNG_ALGORITHM_RAW)


@service("Rng.GetRNG", "NNNN")
def get_rng(call: Call, this: int, algorithm_at: int, size: int, value_at: int) -> None:
    """Give bytes that follow from --rng-seed and from how many calls there were."""
    raw = not algorithm_at or call.read_guid(algorithm_at) == RNG_ALGORITHM_RAW
    check(raw, Status.UNSUPPORTED, "there is only the algorithm RAW")
    check(0 < size <= MAX_RANDOM, Status.INVALID_PARAMETER, f"{size} random bytes at a time")
    firmware = call.firmware
    state = firmware.seed + firmware.random_taken.to_bytes(8, "little")
    call.write(needed(value_at), hashlib.shake_128(state).digest(size))
    firmware.random_taken += 1
