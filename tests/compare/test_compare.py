"""compare: who runs what, where boots join, and the forms of a comparison."""

from __future__ import annotations

import json
from collections import Counter

from pagereader import Reader

from xenemu.compare import page, text
from xenemu.compare.boots import Boot, Comparison, Row, Share
from xenemu.coverage import Coverage, Function

COMMON = tuple(f"f{n}" for n in range(60))


def boot(name: str, *functions: str, **asked: dict[str, int]) -> Boot:
    """A boot in which each function first runs ten instructions after the one before it."""
    ran = tuple(Function(own, 0x1000 + n, 1, "", 10 * n) for n, own in enumerate(functions))
    counted = {kind: Counter(counts) for kind, counts in asked.items()}
    return Boot(name, "it powered off", 10 * len(ran), Coverage(ran, (range(5000),)), counted)


def comparison(*boots: Boot) -> Comparison:
    return Comparison(boots)


def test_each_function_is_counted_for_exactly_those_who_run_it() -> None:
    found = comparison(boot("a", "x", "y"), boot("b", "y", "z"), boot("c", "y", "x")).share()
    assert found == Share(None, 3, 1, {("a", "b", "c"): 1, ("a", "c"): 1, ("b",): 1})


def test_a_share_up_to_a_milestone_counts_what_ran_before_it() -> None:
    both = comparison(boot("a", "x", "start_kernel", "y"), boot("b", "z", "start_kernel", "y"))
    assert both.milestones == ["start_kernel"]
    assert both.share("start_kernel") == Share("start_kernel", 2, 0, {("a",): 1, ("b",): 1})
    assert both.share().common == 2


def test_a_milestone_that_one_boot_does_not_reach_is_none() -> None:
    assert comparison(boot("a", "start_kernel"), boot("b", "x")).milestones == []


def test_the_spine_is_the_longest_that_there_is() -> None:
    both = comparison(boot("a", *"bacdef"), boot("b", *"cabxdfe"))
    assert len(both.spine) == 3
    mixed = [[name for n in range(3000) for name in (f"x{n}", f"{who}{n}")] for who in ("y", "z")]
    both = comparison(boot("a", *mixed[0]), boot("b", *mixed[1]))
    assert both.spine == tuple(f"x{n}" for n in range(3000))


def test_rows_have_what_is_common_in_its_order_and_the_rest_between() -> None:
    rows = comparison(boot("a", "x", "c", "y", "d"), boot("b", "c", "d", "z")).rows(10)
    assert rows == [
        Row(None, (("x",), ())),
        Row("c"),
        Row(None, (("y",), ())),
        Row("d"),
        Row(None, ((), ("z",))),
    ]


def test_boots_join_where_nearly_all_that_follows_is_common() -> None:
    own = tuple(f"a{n}" for n in range(60))
    others = tuple(f"b{n}" for n in range(60))
    both = comparison(boot("a", "helper", *own, *COMMON), boot("b", "helper", *others, *COMMON))
    assert both.join == "f0"
    assert comparison(boot("a", *own), boot("b", *others)).join is None


def test_what_one_alone_runs_and_what_none_does() -> None:
    both = comparison(boot("a", "x", "y"), boot("b", "y", "z"))
    assert both.only("b") == ["z"]
    assert both.unreached(["x", "setup_ghost"]) == ["setup_ghost"]


def test_what_was_asked_is_counted_by_boot() -> None:
    both = comparison(boot("a", "x", hypercalls={"iret": 3}), boot("b", "x"))
    assert both.asked("hypercalls") == {"iret": (3, 0)}


def test_a_function_that_several_symbols_have_counts_once() -> None:
    assert boot("a", "static", "static").order == ("static",)


def test_the_page_is_whole_loads_nothing_and_escapes_names() -> None:
    both = comparison(
        boot("a<b>", "x<1>", "start_kernel", hypercalls={"<iret>": 3}), boot("b", "start_kernel")
    )
    reader = Reader(page.page(both, "two & more", 10, ["ghost<init>"]))
    assert (reader.open, reader.loads, reader.scripts) == ([], [], [])
    for word in ("two & more", "x<1>", "a<b>", "<iret>", "ghost<init>", "start_kernel"):
        assert word in reader.said


def test_what_boots_run_alike_is_shown_once() -> None:
    said = text.text(
        comparison(boot("a", "x", "c"), boot("b", "y", "c"), boot("d", "x", "c")), 10, []
    )
    assert "      1, 3: x\n      2: y\n  = c\n" in said


def test_rows_end_when_each_boot_has_shown_enough() -> None:
    both = comparison(boot("a", *COMMON), boot("b", "x", "y", "z", *COMMON))
    assert both.rows(2) == [Row(None, ((), ("x", "y", "z"))), Row("f0"), Row("f1")]


def test_the_text_and_the_document_say_who_runs_what() -> None:
    both = comparison(boot("a", "x", "start_kernel"), boot("b", "start_kernel"))
    said = text.text(both, 10, [])
    assert "before start_kernel: 1, 0 of them by all (0%)" in said
    assert "Run by a only:\n  x\n" in said
    assert "Run by b only" not in said
    found = json.loads(json.dumps(text.document(both, 10, [])))
    assert found["boots"][0]["order"] == ["x", "start_kernel"]
    assert found["functions"][0] == {
        "until": "start_kernel",
        "total": 1,
        "common": 0,
        "by": [{"boots": ["a"], "functions": 1}],
    }
