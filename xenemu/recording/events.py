"""What a recording is a list of. Plain data.

Each event says where in the run it is: after how many turns of the run loop, how many instructions,
and at which virtual time.
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from struct import Struct
from typing import Annotated, Final

import msgspec

from xenemu.machine.core import Core
from xenemu.outcome import End

PIECE: Final = 4 << 20  # bytes of memory that one check looks at
TURN: Final = Struct("<QQQQ")
Natural = Annotated[int, msgspec.Meta(ge=0)]
SliceNs = Annotated[int, msgspec.Meta(gt=0, le=1 << 62)]
Moment = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]  # no clock comes so far
Signal = Annotated[int, msgspec.Meta(ge=0, le=64)]  # 0: none
HOST_MADE: Final = {End.EXPECTED, End.STOPPED, End.TIMEOUT, End.INCONSISTENT}


class Event(msgspec.Struct, array_like=True, tag=True):
    """Something that happened between two slices of the guest."""

    turns: Natural
    instructions: Natural
    now_ns: Natural


class Arrived(Event):
    """A backend got input: keys, a packet, a command."""

    receiver: str
    data: bytes
    is_idle: bool = False  # it ended a wait


class Waited(Event):
    """Nothing ran until something came; `until_ns` if time passed as the host's."""

    until_ns: Moment
    is_live: bool


class Changed(Event):
    """The order of vcpus, or random numbers, begin anew: slice and seed, and seed."""

    schedule: tuple[SliceNs, Natural | None] | None
    rng_seed: Natural | None


class Answered(Event):
    """The server of a share has answered a request, or would not."""

    share: str
    data: bytes
    failed: str = ""


class Checked(Event):
    """What the machine was, in a few bytes; `number` counts these."""

    number: Natural
    trail: int
    state: bytes


class Ended(Event):
    """The run is over; the last fields are those of a check."""

    end: End
    reason: str
    advice: str
    signum: Signal
    printed: int
    number: Natural
    trail: int
    state: bytes

    @property
    def is_host_made(self) -> bool:
        """Whether the guest did not end by itself."""
        return self.end in HOST_MADE


Any = Arrived | Waited | Changed | Answered | Checked | Ended


def place(machine: Core) -> tuple[int, int, int]:
    """The first fields of an event that happens now."""
    engine = machine.engine
    return machine.past.turns, engine.instructions, engine.now_ns


def follow(machine: Core) -> None:
    """A turn begins: put where the guest is into the trail."""
    engine, past = machine.engine, machine.past
    here = (engine.instructions, engine.now_ns, machine.current.vcpu.vcpu_id, engine.rip)
    past.trail = zlib.crc32(TURN.pack(*here), past.trail)


def state_of(machine: Core, number: int) -> bytes:
    """A digest of the registers, and of a piece of memory, which is another one each time."""
    memory = machine.domain.memory.bytes
    at = number * PIECE % len(memory)
    registers = repr(machine.engine.store()).encode()
    whole = blake2b(registers, digest_size=8)
    whole.update(zlib.crc32(memory[at : at + PIECE]).to_bytes(4, "little"))
    return whole.digest()
