"""What many boots at once cost: ``python -m bench.matrix``.

`xenemu smoke` with two jobs is compared with as many single runs, and 100 tests that start from one
boot with that boot. Prints a table in Markdown, for docs/performance.md, and how long a fork takes.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench import report
from bench.__main__ import _environment, _image
from bench.measure import BenchError
from guests import fetch
from guests.build import ENVIRONMENTS, build, guests
from xenemu.smoke import initramfs
from xenemu.smoke.guest import Guest, close_all
from xenemu.smoke.plan import make_boots

BOOTS: Final = 20
TESTS: Final = 100
FORKS: Final = 20
ROUNDS: Final = 5
OPTIONS: Final[dict[str, dict[str, str]]] = {  # by kernel
    "hello": {"memory": "64M"},
    "vmlinuz": {"mode": "pvh", "cmdline": "console=hvc0", "initrd": "poweroff.gz"},
}
POWER_OFF: Final = "#!/bin/sh\npoweroff -f\n"
SHELL: Final = "#!/bin/sh\nexec sh\n"
PROMPT: Final = "^/ # "


def main() -> int:
    """Measure, and print what was found; `--quick` does one round."""
    rounds = 1 if "--quick" in sys.argv[1:] else ROUNDS
    lines = [["CPU s, medians", "one after the other", "by smoke, 2 jobs", "ratio"]]
    try:
        with tempfile.TemporaryDirectory(prefix="xenemu-matrix-") as folder:
            _prepare(Path(folder))
            os.chdir(folder)
            for kernel in OPTIONS:
                name = f"{BOOTS} boots of {kernel}"
                lines.append([name, *_compare(rounds, _singles(kernel), _plan(_boots(kernel)))])
            for mode in ("pv", "pvh"):
                name = f"a boot ({mode}), and {TESTS} tests from it"
                both = (_plan(_tests(mode, 0)), _plan(_tests(mode, TESTS)))
                lines.append([name, *_compare(rounds, *both)])
            forks = _forks()
    except (BenchError, *fetch.FAILURES) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(report.markdown(lines, names=1))
    print(f"\nA fork of a booted Debian takes {forks}.")
    return 0


def _prepare(folder: Path) -> None:
    build(guests()["hello"], ENVIRONMENTS["pv64"], folder / "hello")
    (folder / "vmlinuz").symlink_to(_image("debian-cloud-amd64").path)
    for name, script in (("poweroff", POWER_OFF), ("shell", SHELL)):
        (folder / name).write_text(script)
        made = initramfs.make(folder / name, None, _image("busybox").path)
        (folder / f"{name}.gz").write_bytes(made)


def _compare(rounds: int, one: Callable[[], None], other: Callable[[], None]) -> list[str]:
    """The medians of the CPU seconds of both, which take turns, and their ratio."""
    costs = [(_cpu_s(one), _cpu_s(other)) for _ in range(rounds)]
    first, second = (statistics.median(each) for each in zip(*costs, strict=True))
    found = [f"{first:.1f}", f"{second:.1f}", f"{second / first:.2f}"]
    print(*found, file=sys.stderr, flush=True)
    return found


def _cpu_s(work: Callable[[], None]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _xenemu(*arguments: str) -> None:
    command = (sys.executable, "-m", "xenemu", *arguments)
    result = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BenchError(f"{' '.join(arguments)}: exit {result.returncode}: {result.stderr}")


def _singles(kernel: str) -> Callable[[], None]:
    options = [word for key, value in OPTIONS[kernel].items() for word in (f"--{key}", value)]

    def run() -> None:
        for _ in range(BOOTS):
            _xenemu("run", kernel, *options)

    return run


def _plan(text: str) -> Callable[[], None]:
    def run() -> None:
        Path("plan.toml").write_text(text)
        _xenemu("smoke", "plan.toml", "--jobs", "2")

    return run


def _table(**keys: str) -> str:
    return "[[boot]]\n" + "".join(f"{key} = '''{value}'''\n" for key, value in keys.items())


def _boots(kernel: str) -> str:
    names = (f"boot {number}" for number in range(BOOTS))
    return "".join(_table(name=name, kernel=kernel, **OPTIONS[kernel]) for name in names)


def _tests(mode: str, count: int) -> str:
    keys = OPTIONS["vmlinuz"] | {"mode": mode, "initrd": "shell.gz", "expect": PROMPT}
    tables = [_table(name="shell", kernel="vmlinuz", **keys)]
    for number in range(count):
        said = {"input": f"echo $(({number} * 7))\n", "expect": f"^{number * 7}$"}
        tables.append(_table(**{"name": f"test {number}", "from": "shell", **said}))
    return "".join(tables)


def _forks() -> str:
    keys = OPTIONS["vmlinuz"] | {"initrd": "shell.gz", "kernel": "vmlinuz"}
    with Guest(make_boots(keys)[0]) as guest:
        guest.expect(PROMPT)
        times: Sequence[float] = [_fork_ms(guest) for _ in range(FORKS)]
    close_all()
    return f"{statistics.median(times):.0f} ms, at most {max(times):.0f} ms, of {FORKS}"


def _fork_ms(guest: Guest) -> float:
    began = time.monotonic()
    with guest.fork():
        return (time.monotonic() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
