"""Changes snapshots and seals them again, and goes on from what is accepted: by hand.

    python tests/fuzz/snapshots.py FILE [TRIES [SEED]]

FILE is what `xenemu run --snapshot` has written, of a guest without disks. A changed file must be
refused in one line, or go on: to any end that a guest can come to, but without an exception of
xenemu's. What was seen is counted; an exception is an exit code of 1.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from unattended import Unattended
from xenemu import snapfile
from xenemu.cli.resume import check, revived
from xenemu.errors import UsageError
from xenemu.hv.page_info import RECORD
from xenemu.machine import Limits, snapshot_file
from xenemu.outcome import End, Outcome
from xenemu.snapfile import DIGEST_SIZE, MAGIC, zstd
from xenemu.x86.paging import PAGE_SHIFT

SLICES = 60
TRIES = 1000
SECONDS = 20.0  # of the host's, after which a run that goes on is over


class Short(Unattended):
    """A terminal that ends the run after some slices."""

    slices = 0

    def check(self) -> Outcome | None:
        self.slices += 1
        return Outcome(End.STOPPED, "long enough") if self.slices > SLICES else None


class Mutator:
    """Makes changed files of a whole one."""

    def __init__(self, whole: bytes, rng: random.Random) -> None:
        self._whole, self._rng = whole, rng
        self._header, rest = snapfile._header(memoryview(whole)[len(MAGIC) : -DIGEST_SIZE])
        self._blocks = [bytes(block) for block in snapfile._cut(rest, self._header.blocks)]
        self._plain = snapfile._unpack(memoryview(self._blocks[0]), self._header.plain_size)

    def make(self) -> tuple[str, bytes]:
        """How it was changed, and the file."""
        rng = self._rng
        how = rng.choice(("bit", "end", "plain", "plain", "plain", "plain"))
        body = bytearray(self._whole[:-DIGEST_SIZE])
        if how == "bit":
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        elif how == "end":
            del body[rng.randrange(len(body)) :]
        else:
            return how, self._with(self._changed())
        return how, bytes(body) + hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()

    def _changed(self) -> bytes:
        """Other plain data: seldom in the frame table, which is most of it and ends it."""
        rng, plain = self._rng, bytearray(self._plain)
        table = (self._header.ram_size >> PAGE_SHIFT) * RECORD.size
        rest = max(1, len(plain) - table)
        for _ in range(rng.choice((1, 1, 1, 3))):
            at = rng.randrange(rest if rng.random() < 0.9 else len(plain))
            plain[at] = rng.choice((plain[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
        return bytes(plain)

    def _with(self, plain: bytes) -> bytes:
        blocks = [zstd.compress(plain), *self._blocks[1:]]
        sizes = [len(block) for block in blocks]
        header = msgspec.structs.replace(self._header, plain_size=len(plain), blocks=sizes)
        encoded = msgspec.msgpack.encode(header)
        length = len(encoded).to_bytes(snapfile.LENGTH_SIZE, "little")
        body = MAGIC + length + encoded + b"".join(blocks)
        return body + hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()


def go_on(place: Path) -> str:
    """What comes of a file: refused, or how its run ended. Any exception is a bug."""
    try:
        saved = snapshot_file.read(place)
        check(place, saved.header)
        machine = revived(place, saved, [])
    except UsageError:
        return "refused"
    return machine.run(Short(), Limits(SECONDS)).end.value


def attempt(whole: bytes, tries: int, seed: int, place: Path) -> Counter[str]:
    """Try so many changed files, written at `place`; how often what came of them."""
    rng, seen = random.Random(seed), Counter[str]()
    mutator = Mutator(whole, rng)
    for number in range(tries):
        how, data = mutator.make()
        place.write_bytes(data)
        try:
            seen[f"{how}: {go_on(place)}"] += 1
        except Exception as error:
            traceback.print_exc()
            seen[f"EXCEPTION in try {number} of seed {seed}, {how}: {error!r}"] += 1
    return seen


def main() -> int:
    """Try, and say what was seen."""
    whole = Path(sys.argv[1]).read_bytes()
    tries, seed = (*map(int, sys.argv[2:]), *(TRIES, 1)[len(sys.argv) - 2 :])
    with tempfile.TemporaryDirectory() as folder:
        seen = attempt(whole, tries, seed, Path(folder, "changed"))
    for what, count in sorted(seen.items()):
        print(f"{count:6} {what}")
    return 1 if any(what.startswith("EXCEPTION") for what in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
