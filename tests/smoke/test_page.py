"""The page of a smoke run: what it shows, that nothing in it is obeyed, and what it compares."""

from __future__ import annotations

import os
import re
from pathlib import Path

import browser
import pytest
from pagereader import Reader

from xenemu.errors import OutputError, UsageError
from xenemu.smoke import page
from xenemu.smoke.ktap import Case, Status
from xenemu.smoke.page import Page
from xenemu.smoke.passed import Baseline, Passed
from xenemu.smoke.plan import Boot
from xenemu.smoke.plan_text import Place
from xenemu.smoke.results import Result, never_run
from xenemu.smoke.session import Phase
from xenemu.smoke.verdict import Finding, Verdict

KERNEL = Path("/boot/vmlinuz")
HOSTILE = (
    "</script></pre><img src=http://x/ onerror=document.title='owned'><script>document.title="
    "'owned'</script>\x1b]0;owned\x07\x9b31m\x00\u202e\udcff\ufffd&lt;\x0b\x85\u2028"
)
LOG = "".join(f"{n:12.6f}  [{n:5}.000000] line {n}\n" for n in range(50))


def boot(name: str, log: str = LOG, *, mode: str = "pv", fails: str = "", **fields) -> Result:
    findings = [Finding(Verdict.PANIC, fails)] if fails else []
    result = Result(Boot(name, KERNEL, mode=mode), findings, reason="it powered off", log=log)
    result.virtual_ns, result.started = 3_000_000_000, 1_790_000_000.0
    result.phases = [
        *(Phase("loaded", 0, 0.1), Phase("init", 2_000_000_000, 0.5)),
        Phase("end", 3_000_000_000, 0.9),
    ]
    for field, value in fields.items():
        setattr(result, field, value)
    return result


def hostile() -> Result:
    """A boot in which all that can be a guest's own, or a person's, would break out."""
    result = boot(HOSTILE, f"    1.000000  {HOSTILE}\n", fails=HOSTILE)
    result.report, result.captures = HOSTILE, {"version": HOSTILE}
    result.cases = [Case((HOSTILE,), Status.FAIL, HOSTILE)]
    return result


def test_the_page_says_what_became_of_each_boot():
    results = [
        *(boot("deb pv"), boot("deb pvh", mode="pvh", fails="no root", report="Backtrace: x")),
        never_run(Boot("late", KERNEL), "stopped by SIGTERM"),
    ]
    reader = Reader(page.page(results, {}))
    assert (reader.open, reader.loads) == ([], [])
    for words in (
        *("1 of 3 boots passed, 1 skipped", "no root", "Backtrace: x", "stopped by SIGTERM"),
        *("line 49", "2.000000", "2026-09-21"),
    ):
        assert words in reader.said


def test_what_differs_in_mode_and_vcpus_stands_in_a_row():
    results = [boot(f"{name} {mode}", mode=mode) for name in ("a", "b") for mode in ("pv", "pvh")]
    grid = re.search(r'<div class="grid">.*?</div>', page.page(results, {}), re.DOTALL)
    assert grid and grid[0].count("<tr>") == 3 and grid[0].count('class="v passed"') == 4
    assert '<div class="grid">' not in page.page([boot("a"), boot("b")], {})


def test_a_phase_has_one_colour_in_the_whole_page():
    early = [Phase("loaded", 0, 0.1), Phase("kernel", 1_000_000_000, 0.3)]
    results = [
        boot("a", phases=[*early, Phase("init", 2_000_000_000, 0.5)]),
        boot("b", phases=[early[0], Phase("init", 2_000_000_000, 0.5)]),
    ]
    whole = page.page(results, {})
    assert len(set(re.findall(r'background:(#\w+)" title="until init: ', whole))) == 1
    assert len(set(re.findall(r'background:(#\w+)" title="until kernel: ', whole))) == 1
    (summary,) = re.findall(r"</table><small class=why>until (.*?)</small>", whole)[:1]
    assert re.sub("<.*?>", "", summary) == " kernel  init"


def test_what_was_never_run_has_the_mode_that_was_asked_for():
    whole = page.page([boot("a", mode="pvh", fails="no pvh")], {})
    assert "<td>pvh</td>" in whole and "virtual s" in whole and "guest s" not in whole


def test_no_text_of_a_guest_is_obeyed():
    innocent = Reader(page.page([boot("a", cases=[Case(("x",), Status.PASS)])], {}))
    result = hostile()
    last = {HOSTILE: Passed(HOSTILE, 0.0, f"    1.000000  was {HOSTILE}\n")}
    whole = page.page([result], last)
    reader = Reader(whole)
    assert (reader.open, reader.loads, reader.scripts) == ([], [], innocent.scripts)
    assert reader.tags <= {*innocent.tags, "span", "div"}
    assert "<img src=http://x/" in reader.said
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", whole)
    whole.encode()


def test_a_long_console_is_bounded():
    lines = page.FIRST_LINES + page.LAST_LINES + 7
    whole = page.page([boot("a", "".join(f"{n:12.6f}  {n}\n" for n in range(lines)))], {})
    assert "(7 lines are left out; --log-dir has all)" in whole
    assert len(page.page([boot("a", f"    0.000000  {'x' * 1_000_000}\n")], {})) < 20_000


def test_tests_that_failed_come_first_and_there_is_an_end_of_them():
    cases = [Case((f"t{n}",), Status.PASS) for n in range(page.CASES)]
    cases.append(Case(("bad",), Status.FAIL, "why"))
    whole = page.page([boot("a", cases=cases)], {})
    assert whole.index("bad") < whole.index("<td>t0")
    assert "and 1 more, which --junit has" in whole and f"t{page.CASES - 1}<" not in whole


def test_the_console_is_compared_with_that_of_the_last_pass_but_for_times():
    later = LOG.replace("line 7\n", "line seven\n")
    for log, words in (
        (LOG.replace(".0000", ".0301"), "The console says the same as the last that passed"),
        (later, "2 lines of the console differ from the last that passed, 2026-09-21"),
    ):
        said = Reader(page.page([boot("a", log)], {"a": Passed("a", 1_790_000_000.0, LOG)})).said
        assert words in said
    assert "-line 7\n+line seven\n line 8" in said
    assert "line 20\n line" not in said
    assert "No earlier boot" in page.page([boot("a")], {"b": Passed("b", 0.0, LOG)})


def test_differences_name_the_line_and_have_few_lines_around():
    before = [f"line {n}" for n in range(100)]
    shown, changed = page.differences(before, [*before[:40], "new", *before[40:]])
    assert changed == 1
    assert Reader(f"<pre>{shown}</pre>").said.split("\n") == [
        *("... line 39", " line 38", " line 39", "+new", " line 40", " line 41"),
    ]
    assert page.differences(before, before) == ("", 0)
    assert page.differences([], ["x"])[1] == page.differences(["x"], [])[1] == 1


def test_hostile_consoles_do_not_make_the_comparison_long():
    """Each line is there twenty times, so that no line is too common to be looked for."""
    lines = [str(n % 100) for n in range(100_000)]
    shown, changed = page.differences(lines, ["0", *reversed(lines)])
    assert changed <= 2 * page.COMPARED
    assert "are compared)" in shown


# What is kept of boots that passed.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xenemu" / "passed"


@pytest.mark.parametrize("named", [False, True])
def test_a_later_page_compares_with_the_boots_that_passed(cache, tmp_path, named):
    folder = tmp_path / "kept" if named else None
    good, bad = boot("good"), boot("bad", fails="panic")
    one = Page.of([good.boot, bad.boot], folder)
    assert one.baseline.found == {}
    one.keep([good, bad])
    later = Page.of([good.boot, bad.boot], folder)
    assert later.baseline.found == {"good": Passed("good", good.started, LOG)}
    later.keep([boot("good", "    0.000000  other\n", fails="panic")])
    assert Page.of([good.boot], folder).baseline.found["good"].log == LOG
    later.keep([boot("good", "    0.000000  newer\n")])
    assert Page.of([good.boot], folder).baseline.found["good"].log == "    0.000000  newer\n"
    assert [path.suffix for path in (folder or cache).iterdir()] == [".passed"]


def test_boots_of_two_plans_have_the_same_name_in_the_cache(cache, tmp_path):
    for plan in ("a.toml", "b.toml"):
        result = boot("good", f"    0.000000  {plan}\n")
        result.boot = Boot("good", KERNEL, place=Place(str(tmp_path / plan), 1))
        Page.of([result.boot], None).keep([result])
        assert f"  {plan}\n" in Page.of([result.boot], None).baseline.found["good"].log
    assert len(list(cache.iterdir())) == 2


def test_another_file_where_a_baseline_is_named_stays(tmp_path):
    result = boot("good")
    for data in (b"mine", b"{}", b'{"name":1,"started":0,"log":""}'):
        (tmp_path / "good.passed").write_bytes(data)
        with pytest.raises(UsageError, match=r"--baseline .*/good.passed: not of xenemu's making"):
            Page.of([result.boot], tmp_path)
        assert (tmp_path / "good.passed").read_bytes() == data


def test_a_pipe_that_somebody_holds_open_is_no_baseline(tmp_path):
    os.mkfifo(tmp_path / "good.passed")
    holder = os.open(tmp_path / "good.passed", os.O_RDWR)
    with pytest.raises(UsageError, match=r"--baseline .*/good.passed: not of xenemu's making"):
        Page.of([boot("good").boot], tmp_path)
    os.close(holder)


def test_what_is_wrong_in_the_cache_is_not_there(cache):
    result = boot("good")
    Page.of([result.boot], None).keep([result])
    (kept,) = cache.iterdir()
    kept.write_bytes(b"wrong")
    assert Page.of([result.boot], None).baseline.found == {}
    kept.unlink()
    kept.mkdir()
    Page.of([result.boot], None).keep([result])
    assert kept.is_dir()


def test_a_baseline_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"--baseline .*/file/x: Not a directory"):
        Baseline(tmp_path / "file" / "x", "--baseline").keep([boot("good")])


# In a browser.


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A function that opens the page of three boots, one of them hostile, in a real browser."""
    place = tmp_path_factory.mktemp("page")
    results = [boot("deb pv"), boot("deb pvh", mode="pvh", fails="no root"), hostile()]
    (place / "page.html").write_text(page.page(results, {}))

    def open_it(query: str = "") -> str:
        return browser.opened(place / "page.html", query, home=place)

    return open_it


def test_a_browser_shows_the_page_and_obeys_no_guest(shown):
    found = shown()
    assert "<title>1 of 3 boots passed</title>" in found
    assert "<img" not in found
    assert '<form id="search">' in found  # shown by the script
    assert found.count("<details class=") == 3


def test_a_browser_searches_all_consoles(shown):
    found = shown("?find=LINE%2049")
    assert "2 lines in 2 of 3 boots" in found
    consoles = re.findall(r'<pre class="console"[^>]*>(.*?)</pre>', found, re.DOTALL)
    assert [each.count("line ") for each in consoles] == [1, 1, 0]
    assert found.count(" unfound") == 1
