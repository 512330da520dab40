"""The results as one HTML page, for a person to look at: `xenemu smoke --html`.

It can be read without its script, which only searches. Text is a guest's own, and hostile: see
`xenemu.webpage`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from xenemu import __version__
from xenemu.linux import STAMP
from xenemu.options import format_size
from xenemu.records import dataclass
from xenemu.smoke.ktap import Status
from xenemu.smoke.passed import Baseline, Passed
from xenemu.smoke.plan import Boot
from xenemu.smoke.results import Result
from xenemu.webpage import bar, colour, document, folded, key, section, table, text

STAMPED: Final = re.compile(r" *\d+\.\d{6}  ")  # by `smoke.transcript`
FIRST_LINES: Final = 1000  # of a console that is long
LAST_LINES: Final = 4000
CASES: Final = 2000  # tests of a boot
LINE: Final = 2000  # characters of a line
COMPARED: Final = 2000  # lines of two consoles, beside those that both begin or end with
CONTEXT: Final = 2  # lines around a difference
COLUMNS: Final = 12  # of the matrix
Names = Mapping[str, int]  # of phases
STYLE: Final = """
pre { font: 13px/1.4 ui-monospace, monospace; overflow: auto; max-height: 40em; padding: .6em;
      background: #f6f6f4; white-space: pre-wrap; overflow-wrap: anywhere }
.v { color: #fff; background: #b3402a; padding: 0 .5em; border-radius: .3em; white-space: nowrap;
     text-decoration: none; font-size: .9em }
.passed .v, .v.passed { background: #39783a } .skipped .v, .v.skipped { background: #6b6f76 }
.boot { border: 1px solid #ccc; border-radius: .4em; padding: .2em .8em; margin: .8em 0 }
.boot > summary { font-weight: 600 } .why { color: #666; font-weight: 400 }
.grid table { width: auto; margin-bottom: 1.2em } th { white-space: nowrap } .bar { min-width: 8em }
.tools { position: sticky; top: 0; padding: .5em 0; background: inherit }
.tools input[type=search] { font: inherit; width: 24em; max-width: 60% }
.more { color: #2a6d2b } .less { color: #a5341f } ::highlight(found) { background: #ffd54a;
     color: #000 }
body:has(#failing:checked) .passed { display: none } .unfound { display: none }
@media (prefers-color-scheme: dark) {
  pre { background: #101213 } .boot { border-color: #444 } .why { color: #aaa }
  a { color: #8ab4f8 } .v { color: #fff } .more { color: #7cc77d } .less { color: #f0917f } }
@media print { pre { max-height: none } .tools { display: none } }
"""
# Shows of each console only the lines with the words, of the boots only those with such a line.
SCRIPT: Final = """
"use strict";
const form = document.getElementById("search"), words = document.getElementById("words");
const found = document.getElementById("found"), boots = [...document.querySelectorAll(".boot")];
const kept = new Map();
for (const pre of document.querySelectorAll("pre.console")) {
  kept.set(pre, pre.textContent);
  pre.scrollTop = pre.scrollHeight;  // to what a boot ended with
}
const shines = typeof Highlight === "function" && CSS.highlights;
function look() {
  const wanted = words.value.toLowerCase(), ranges = [];
  let lines = 0, places = 0;
  for (const boot of boots) {
    let own = boot.dataset.name.toLowerCase().includes(wanted) ? 1 : 0;
    for (const pre of boot.querySelectorAll("pre.console")) {
      const has = kept.get(pre).split("\\n").filter(l => l.toLowerCase().includes(wanted));
      pre.textContent = wanted ? has.join("\\n") : kept.get(pre);
      own += has.length; lines += wanted ? has.length : 0;
      if (wanted && pre.firstChild && shines) mark(pre.firstChild, wanted, ranges);
      pre.closest("details").open = wanted ? has.length > 0 : pre.dataset.open === "1";
    }
    boot.classList.toggle("unfound", wanted !== "" && !own);
    if (wanted && own) { boot.open = true; places += 1; }
  }
  found.textContent = wanted ? `${lines} lines in ${places} of ${boots.length} boots` : "";
  if (shines) CSS.highlights.set("found", new Highlight(...ranges));
}
function mark(node, wanted, ranges) {
  const all = node.data.toLowerCase();
  for (let at = all.indexOf(wanted); at >= 0 && ranges.length < 5000;
       at = all.indexOf(wanted, at + wanted.length)) {
    if (at + wanted.length > node.data.length) break;
    const range = new Range();
    range.setStart(node, at); range.setEnd(node, at + wanted.length); ranges.push(range);
  }
}
function unfold() {
  const boot = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (boot && boot.tagName === "DETAILS") { boot.open = true; boot.scrollIntoView(); }
}
form.hidden = false;
form.addEventListener("submit", event => event.preventDefault());
words.addEventListener("input", look);
window.addEventListener("hashchange", unfold);
const asked = new URLSearchParams(location.search).get("find");
if (asked) { words.value = asked; look(); } else unfold();
"""


@dataclass
class Page:
    """A page of boots, and how these were when they last passed."""

    baseline: Baseline

    @classmethod
    def of(cls, boots: Sequence[Boot], named: Path | None) -> Page:
        """For these boots; `named` is where those are that passed. UsageError."""
        return cls(Baseline.of(boots, named))

    def text(self, results: Sequence[Result]) -> str:
        """The page itself."""
        return page(results, self.baseline.found)

    def keep(self, results: Sequence[Result]) -> None:
        """Let a later page compare with these; OutputError."""
        self.baseline.keep(results)


def page(results: Sequence[Result], passed: Mapping[str, Passed]) -> str:
    """The page; `passed` has by name how boots were when they last passed."""
    good = sum(not result.findings for result in results)
    skipped = sum(result.skipped for result in results)
    title = f"{good} of {len(results)} boots passed{f', {skipped} skipped' if skipped else ''}"
    longest_ns = max((result.virtual_ns for result in results), default=0)
    began = min((result.started for result in results if result.started), default=0.0)
    names = _names(results)
    parts = [
        f"<h1>{text(title)}</h1><p>xenemu {text(__version__)}, {_date(began)}</p>",
        '<div class="tools"><label><input type="checkbox" id="failing"> only what did not pass'
        '</label> <form id="search" hidden><input type="search" id="words"'
        ' placeholder="search names and consoles"> <output id="found"></output></form></div>',
        section("Matrix", _matrix(results) + _summary(results, longest_ns, names)),
        section(
            "Boots", "".join(_boot(each, passed.get(each.boot.name), names) for each in results)
        ),
    ]
    return document(title, parts, STYLE, SCRIPT)


# The matrix.


def _matrix(results: Sequence[Result]) -> str:
    """Boots that differ only in mode and vcpus stand in a row; nothing if no two do."""
    rows: dict[str, dict[str, Result]] = {}
    counts = {result.boot.vcpus for result in results}
    for result in results:
        boot, row = result.boot, result.boot.name
        column = boot.mode if len(counts) == 1 else f"{boot.mode}, {boot.vcpus} vcpus"
        for word in (boot.mode, f"{boot.vcpus}vcpu"):
            row = re.sub(rf"(?:^| ){re.escape(word)}(?= |$)", "", row).strip()
        rows.setdefault(row or boot.kernel.name, {}).setdefault(column, result)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    placed = sum(map(len, rows.values()))
    if not 1 < len(columns) <= COLUMNS or len(rows) == len(results) or placed < len(results):
        return ""
    lines = [
        [text(name), *(_verdict(row[each]) if each in row else "" for each in columns)]
        for name, row in rows.items()
    ]
    return f'<div class="grid">{table(["", *columns], lines, numbers=())}</div>'


def _verdict(result: Result) -> str:
    said = text(result.sentence)
    return (
        f'<a class="v {_kind(result)}" href="#{text(result.boot.slug)}" title="{said}">'
        f"{text(result.verdict.value)}</a>"
    )


def _kind(result: Result) -> str:
    return "skipped" if result.skipped else "failed" if result.findings else "passed"


def _summary(results: Sequence[Result], longest_ns: int, names: Names) -> str:
    heads = ("verdict", "boot", "mode", "virtual s", "host s", "cpu s", "MiB", "tests", "phases")
    rows = [
        [
            _verdict(result),
            f"{text(result.boot.name)}<br><small class=why>{text(result.sentence)}</small>",
            text(result.mode or result.boot.mode),
            f"{result.virtual_ns / 1e9:.3f}",
            f"{result.host_s:.1f}",
            f"{result.cpu_s:.1f}",
            f"{result.peak_kib >> 10}",
            text(result.tests),
            _phases(result, longest_ns, names),
        ]
        for result in results
    ]
    drawn = {name for each in results for name, took_ns, _ in _spans(each) if took_ns}
    keys = _keys((name for name in names if name in drawn), names)
    return table(heads, rows, range(3, 7), [_kind(result) for result in results]) + keys


# A boot.


def _boot(result: Result, last: Passed | None, names: Names) -> str:
    kind = _kind(result)
    fails = kind == "failed"
    heading = (
        f'<span class="v {kind}">{text(result.verdict.value)}</span> {text(result.boot.name)}'
        f' <span class="why">{text(result.sentence)}</span>'
    )
    parts = [_facts(result), _phases(result, result.virtual_ns, names), _legend(result, names)]
    if result.cases:
        parts.append(folded(result.tests, _tests(result), fails))
    if result.report:
        parts.append(folded("Report", f"<pre>{_lines(result.report)}</pre>", fails))
    parts.append(_since(result, last))
    parts.append(_console(result, fails))
    name = text(result.boot.name)
    return (
        f'<details class="boot {kind}" id="{text(result.boot.slug)}" data-name="{name}"'
        f"{' open' if fails else ''}><summary>{heading}</summary>{''.join(parts)}</details>\n"
    )


def _facts(result: Result) -> str:
    boot = result.boot
    said = [
        f"from {boot.origin.name}" if boot.origin else str(boot.kernel),
        result.mode or boot.mode,
        format_size(boot.memory),
        f"{boot.vcpus} vcpus" if boot.vcpus > 1 else "",
        repr(boot.full_cmdline) if boot.full_cmdline else "",
        f"{result.instructions:,} instructions",
        *(f"{name}={value}" for name, value in result.captures.items()),
    ]
    return f"<p>{text(', '.join(filter(None, said)))}</p>"


def _spans(result: Result) -> Iterator[tuple[str, int, float]]:
    """What lies before each point of a boot: its name, and how much of the guest's and our time."""
    before_ns, before_s = 0, 0.0
    for phase in result.phases:
        yield phase.name, max(0, phase.virtual_ns - before_ns), max(0.0, phase.host_s - before_s)
        before_ns, before_s = phase.virtual_ns, phase.host_s


def _names(results: Sequence[Result]) -> Names:
    """The phases of all boots, each with its number: a phase has one colour in the whole page."""
    found = dict.fromkeys(phase.name for result in results for phase in result.phases)
    return {name: number for number, name in enumerate(found)}


def _keys(shown: Iterable[str], names: Names) -> str:
    """What the colours of these phases are."""
    keys = " ".join(key(names[name]) + text(name) for name in shown)
    return f"<small class=why>until {keys}</small>" if keys else ""


def _phases(result: Result, whole_ns: int, names: Names) -> str:
    """A bar of the guest's time, as long as its share of `whole_ns`."""
    parts = [
        (took_ns / 1e9, colour(names[name]), f"until {name}: {took_ns / 1e9:.6f} s")
        for name, took_ns, _ in _spans(result)
        if took_ns
    ]
    rest_ns = whole_ns - sum(took_ns for _, took_ns, _ in _spans(result))
    if parts and rest_ns > 0:
        parts.append((rest_ns / 1e9, "transparent", ""))
    return bar(parts) if parts else ""


def _legend(result: Result, names: Names) -> str:
    """What the colours of the bar mean, and all phases in numbers."""
    spans = list(_spans(result))
    if not spans:
        return ""
    rows = [
        [
            key(names[name]) + text(name),
            *(f"{ns / 1e9:.6f}" for ns in (end.virtual_ns, took_ns)),
            f"{took_s:.3f}",
        ]
        for (name, took_ns, took_s), end in zip(spans, result.phases, strict=True)
    ]
    heads = ["until", "at virtual s", "took virtual s", "took host s"]
    numbers = folded("Phases", table(heads, rows, numbers=range(1, 4)))
    return _keys((name for name, took_ns, _ in spans if took_ns), names) + numbers


def _tests(result: Result) -> str:
    """The tests, those that failed first; of a guest that has too many, not all."""
    cases = sorted(result.cases, key=lambda case: case.status is not Status.FAIL)
    rows = [
        [text(" / ".join(case.path)[:LINE]), text(case.status.value), text(case.reason[:LINE])]
        for case in cases[:CASES]
    ]
    left_out = len(cases) - len(rows)
    more = f"<p>and {left_out} more, which --junit has</p>" if left_out else ""
    return table(["test", "", "why"], rows, numbers=()) + more


def _console(result: Result, unfolded: bool) -> str:
    lines = result.log.split("\n")[:-1]
    shown = _lines(result.log.removesuffix("\n"))
    pre = f'<pre class="console" data-open="{int(unfolded)}">{shown}</pre>'
    title = f"Console, with the guest's time: {len(lines)} lines"
    return folded(title, pre, unfolded) if lines else "<p>The console shows nothing.</p>"


def _lines(log: str) -> str:
    """A bounded part of a text, its end rather than its beginning."""
    lines = log.split("\n")
    left_out = len(lines) - FIRST_LINES - LAST_LINES
    if left_out > 0:
        told = f"({left_out} lines are left out; --log-dir has all)"
        lines = [*lines[:FIRST_LINES], told, *lines[-LAST_LINES:]]
    return "\n".join(text(line if len(line) <= LINE else f"{line[:LINE]} (...)") for line in lines)


# What has changed.


def _since(result: Result, last: Passed | None) -> str:
    """How the console differs from that of the last boot of this name that passed."""
    if last is None:
        return "<p>No earlier boot of this name has passed, as far as is known.</p>"
    when = f"the last that passed, {_date(last.started)}"
    before, now = _said(last.log), _said(result.log)
    if before == now:
        return f"<p>The console says the same as {when}, but for times.</p>"
    shown, changed = differences(before, now)
    title = f"{changed} lines of the console differ from {when}"
    return folded(title, f"<pre>{shown}</pre>", bool(result.findings))


def _said(log: str) -> list[str]:
    """What a console says, without the times: ours, and those of Linux."""
    lines = (STAMPED.sub("", line, count=1) for line in log.split("\n")[:-1])
    return [STAMP.sub("", line, count=1)[:LINE] for line in lines]


def differences(before: list[str], now: list[str]) -> tuple[str, int]:
    """Lines that are gone (-) and new (+), with some around them, as HTML, and how many they are.

    Only `COMPARED` lines are compared after the first that differs: a guest must not make it long.
    """
    start = next(
        (n for n, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]),
        min(len(before), len(now)),
    )
    end = 0
    while end < min(len(before), len(now)) - start and before[-1 - end] == now[-1 - end]:
        end += 1
    begin = max(0, start - CONTEXT)
    old, new = (lines[begin : len(lines) - max(0, end - CONTEXT)] for lines in (before, now))
    is_cut = max(len(old), len(new)) > COMPARED
    shown: list[str] = []
    changed = 0
    for line in difflib.unified_diff(old[:COMPARED], new[:COMPARED], n=CONTEXT, lineterm=""):
        if line.startswith(("---", "+++")) and not shown:
            continue
        if line.startswith("@@"):
            shown.append(f"... {_place(line, begin)}")
            continue
        kind = {"+": "more", "-": "less"}.get(line[0], "")
        changed += bool(kind)
        shown.append(f'<span class="{kind}">{text(line)}</span>' if kind else text(line))
    if is_cut:
        shown.append(f"... (only {COMPARED} lines from the first difference on are compared)")
    return "\n".join(shown), changed


def _place(hunk: str, begin: int) -> str:
    """Where in the console of now a hunk of difflib's begins."""
    found = re.search(r"\+(\d+)", hunk)
    return f"line {int(found[1]) + begin}" if found else ""


def _date(started: float) -> str:
    if not (math.isfinite(started) and 0 <= started < 1 << 37):
        return "at an unknown time"
    return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
