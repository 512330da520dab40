"""Build the guests of this folder: ``python guests/build.py [NAME...]``.

A guest is a folder with a guest.toml; its C and assembly sources are compiled together with
those of `common/` that its environment names, into ``<guest>/build/<guest>-<environment>``.
The C library is not used, so gcc's ``-m32`` needs no 32-bit packages.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

GUESTS = Path(__file__).parent
COMMON = GUESTS / "common"
CFLAGS = (
    "-std=gnu11 -O2 -g -Wall -Wextra -Werror -ffreestanding -fno-pic -no-pie -static -nostdlib "
    "-mno-red-zone -mgeneral-regs-only -fcf-protection=none -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -Wl,--build-id=none -Wa,--fatal-warnings"
).split()

PV_SOURCES = ("pv.c", "traps_pv.S", "traps_pv.c", "trap.c", "lib.c")
PVH_SOURCES = ("head_pvh.S", "pvh.c", "traps.S", "traps.c", "trap.c", "lib.c")


class BuildError(Exception):
    """A guest does not build; `str()` is what the compiler said."""


@dataclass(frozen=True)
class Environment:
    """A way of running a guest: its compiler options, its sources, and `xenemu run`'s mode."""

    name: str
    options: tuple[str, ...]
    sources: tuple[str, ...]
    mode: str


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("pv64", ("-m64", "-DGUEST_PV"), ("head_pv64.S", *PV_SOURCES), "pv"),
        Environment("pv32", ("-m32", "-DGUEST_PV"), ("head_pv32.S", *PV_SOURCES), "pv"),
        Environment("pvh64", ("-m64",), PVH_SOURCES, "pvh"),
        Environment("pvh32", ("-m32",), PVH_SOURCES, "pvh"),
        Environment("draft64", ("-m64", "-DGUEST_DRAFT"), PVH_SOURCES, "hvm-draft-a"),
        Environment("draft32", ("-m32", "-DGUEST_DRAFT"), PVH_SOURCES, "hvm-draft-a"),
    )
}


@dataclass(frozen=True)
class Guest:
    """A guest.toml, and the folder it is in; the folder's name is the guest's."""

    folder: Path
    environments: tuple[str, ...]
    memory: str
    cmdline: str
    exit: int
    timeout: int
    initrd: str = ""  # a file in the folder
    vcpus: int = 1
    options: tuple[str, ...] = ()  # more of `xenemu run`

    @property
    def name(self) -> str:
        return self.folder.name

    def expected(self, environment: str) -> str:
        """Return the console output that a run must print, to the byte."""
        special = self.folder / f"expected-{environment}.txt"
        if special.exists():
            return special.read_text()
        return (self.folder / "expected.txt").read_text().replace("{environment}", environment)

    @property
    def attacks(self) -> bool:
        """Whether the guest has a list of what it must be refused."""
        return (self.folder / "refusals.txt").exists()

    def refusals(self, environment: str) -> list[str]:
        """Return what a guest that attacks must be refused, in order.

        A line is a pattern for sentences of xenemu's, one or more in a row, where ``*`` is
        anything; one that begins with an environment in brackets is only for that.
        """
        lines = (self.folder / "refusals.txt").read_text().splitlines()
        named = [re.fullmatch(r"(?:\[(\w+)\] )?(.*)", line) for line in lines]
        return [match[2] for match in named if match and match[1] in (None, environment)]


def guests() -> dict[str, Guest]:
    """Find the guests, in the order of their names."""
    found = {}
    for declaration in sorted(GUESTS.glob("*/guest.toml")):
        table = tomllib.loads(declaration.read_text())
        for name in ("environments", "options"):
            table[name] = tuple(table.get(name, ()))
        found[declaration.parent.name] = Guest(declaration.parent, **table)
    return found


def build(guest: Guest, environment: Environment, out: Path) -> Path:
    """Compile and link a guest for one environment into the file `out`."""
    own = sorted(path for path in guest.folder.iterdir() if path.suffix in {".c", ".S"})
    out.parent.mkdir(parents=True, exist_ok=True)
    name = f'-DGUEST_NAME="{guest.name}"'
    command: list[str | Path] = ["gcc", *environment.options, *CFLAGS, name, f"-I{COMMON}"]
    command += [f"-Wl,-T,{COMMON / 'guest.lds'}", "-o", out]
    command += [*(COMMON / source for source in environment.sources), *own]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError("no gcc: install it (Debian: apt-get install gcc)") from None
    if result.returncode:
        raise BuildError(result.stderr)
    return out


def main() -> int:
    """Build the guests named on the command line, or all; print the path of each file built."""
    known = guests()
    parser = argparse.ArgumentParser(prog="guests/build.py", description="Build guests.")
    parser.add_argument("name", nargs="*", help=f"of {', '.join(known)} (default: all)")
    arguments = parser.parse_args()
    for name in arguments.name or known:
        if name not in known:
            parser.error(f"no guest {name!r}; there are: {', '.join(known)}")
        guest = known[name]
        for environment in guest.environments:
            out = guest.folder / "build" / f"{name}-{environment}"
            try:
                print(build(guest, ENVIRONMENTS[environment], out))
            except BuildError as failure:
                print(failure, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
