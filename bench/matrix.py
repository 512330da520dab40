"""What many boots at once cost.

`xenemu smoke` with two jobs is compared with as many single runs, and 100 tests that start from one
boot with that boot.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import files, report
from bench.files import XENEMU
from bench.measure import BenchError
from bench.rows import Figures, Group, Row
from xenemu.smoke import initramfs

BOOTS: Final = 20
TESTS: Final = 100
ONE, SMOKE = "one after the other", "by smoke, 2 jobs"
OPTIONS: Final[dict[str, dict[str, str]]] = {  # by kernel
    "hello": {"memory": "64M"},
    "vmlinuz": {"mode": "pvh", "cmdline": "console=hvc0", "initrd": "poweroff.gz"},
}
POWER_OFF: Final = "#!/bin/sh\npoweroff -f\n"
SHELL: Final = "#!/bin/sh\nexec sh\n"
PROMPT: Final = "^/ # "


Work = Callable[[Path], None]


def many(kernel: str) -> str:
    """The row of many boots of a kernel."""
    return f"{BOOTS} boots of {kernel}"


def _row(name: str, one: Work, other: Work) -> Row:
    return Row(name, lambda folder: {ONE: _cpu_s(one, folder), SMOKE: _cpu_s(other, folder)})


def _prepare(folder: Path) -> list[Row]:
    (folder / "hello").symlink_to(files.put_guest(folder, "hello", "pv64"))
    (folder / "vmlinuz").symlink_to(files.image(files.CLOUD).path)
    for name, script in (("poweroff", POWER_OFF), ("shell", SHELL)):
        (folder / name).write_text(script)
        made = initramfs.make(folder / name, None, files.image("busybox").path)
        (folder / f"{name}.gz").write_bytes(made)
    rows = [_row(many(kernel), _singles(kernel), _plan(_boots(kernel))) for kernel in OPTIONS]
    for mode in ("pv", "pvh"):
        both = (_plan(_tests(mode, 0)), _plan(_tests(mode, TESTS)))
        rows.append(_row(f"a boot ({mode}), and {TESTS} tests from it", *both))
    return rows


def _cpu_s(work: Work, folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _xenemu(folder: Path, *arguments: str) -> None:
    result = subprocess.run(
        (*XENEMU, *arguments),
        cwd=folder,
        env=files.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise BenchError(f"{' '.join(arguments)}: exit {result.returncode}: {result.stderr}")


def _singles(kernel: str) -> Work:
    options = [word for key, value in OPTIONS[kernel].items() for word in (f"--{key}", value)]

    def run(folder: Path) -> None:
        for _ in range(BOOTS):
            _xenemu(folder, "run", kernel, *options)

    return run


def _plan(text: str) -> Work:
    def run(folder: Path) -> None:
        (folder / "plan.toml").write_text(text)
        _xenemu(folder, "smoke", "plan.toml", "--jobs", "2")

    return run


def _toml(**keys: str) -> str:
    return "[[boot]]\n" + "".join(f"{key} = '''{value}'''\n" for key, value in keys.items())


def _boots(kernel: str) -> str:
    names = (f"boot {number}" for number in range(BOOTS))
    return "".join(_toml(name=name, kernel=kernel, **OPTIONS[kernel]) for name in names)


def _tests(mode: str, count: int) -> str:
    keys = OPTIONS["vmlinuz"] | {"mode": mode, "initrd": "shell.gz", "expect": PROMPT}
    tables = [_toml(name="shell", kernel="vmlinuz", **keys)]
    for number in range(count):
        said = {"input": f"echo $(({number} * 7))\n", "expect": f"^{number * 7}$"}
        tables.append(_toml(**{"name": f"test {number}", "from": "shell", **said}))
    return "".join(tables)


def ratio(figures: Figures, row: str) -> float | None:
    """What smoke costs, as a part of the single runs' sum."""
    single, smoke = (figures.median(row, name) for name in (ONE, SMOKE))
    return smoke / single if single and smoke else None


def _table(figures: Figures) -> str:
    lines = [["CPU s", ONE, SMOKE, "ratio"]]
    for row in figures.rows:
        both = (figures.median(row, name) for name in (ONE, SMOKE))
        cells = (*(report.cell(value, 1) for value in both), report.cell(ratio(figures, row), 2))
        lines.append([row, *cells])
    return report.markdown(lines, names=1)


GROUP: Final = Group(
    "matrix",
    "20 boots by smoke, and 100 tests from one boot",
    minutes=8,
    prepare=_prepare,
    table=_table,
)
