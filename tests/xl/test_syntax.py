"""The syntax of xl's configuration files; what xl's own reader (libxlutil 4.17) makes of each."""

from __future__ import annotations

import pytest

from xenemu.errors import UsageError
from xenemu.xl.syntax import parse


def read(text):
    return {name: setting.value for name, setting in parse("f", text).items()}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1", {"a": "1"}),
        ("a=1\na='2'", {"a": "2"}),
        ("  a = 1\n\n;;\nb=2", {"a": "1", "b": "2"}),
        ("a=[1,'b',\n\n 'c',\n]\nb=2;c=3", {"a": ["1", "b", "c"], "b": "2", "c": "3"}),
        ("a=[#c\n'x',#d\n]", {"a": ["x"]}),
        ("a=[]", {"a": []}),
        ("a+='x'", {"a": "x"}),
        ("a='x'\na+='y'", {"a": "xy"}),
        ("a=['x']\na+=['y']", {"a": ["x", "y"]}),
        ("a='x'\na=['y']", {"a": ["y"]}),
        ("a=0x10\nb=010", {"a": "0x10", "b": "010"}),
        (r"""a='\a\b\f\n\r\t\v\'\"\\'""", {"a": "\a\b\f\n\r\t\v'\"\\"}),
        ("a=1 # the end", {"a": "1"}),  # xl wants a line's end there
        ("", {}),
    ],
)
def test_reads_what_xl_reads(text, wanted):
    assert read(text) == wanted


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a=b", 1, "b: a: give a number"),
        ("a=\nb=1", 1, "a: give a number"),
        ("a='x' 'y'", 1, "'y': one statement a line"),
        ("a=[ 'x' 'y' ]", 1, "a comma is missing"),
        ("\na=[1,\n\n", 2, "a list has no ] at its end"),
        ("\na=[1\n\n", 2, "a list has no ] at its end"),
        ("a=[['x']]", 1, "give a number or a string"),
        ("a=[,]", 1, "give a number or a string"),
        ("a=1,", 1, "one statement a line"),
        ("a==1", 1, "give a number"),
        ("a=1\nb", 2, "b: give it a value"),
        ("1=a", 1, "1: give a name"),
        ("a=12k", 1, "k: one statement a line"),
        ("a=(1)", 1, "no Python"),
        ("a=-1", 1, "no Python"),
        ("a=1.5", 1, "no Python"),
        ("A=1", 1, "small letters"),
        ("a=1\n_c=2", 2, "no part of a configuration"),
        ("a='x\ny'", 1, "no quote at its end"),
        ("a=1\r\nb=2", 1, "DOS"),
        ("a=['x']\na+='y'", 2, "cannot be added"),
        ("a='x'\na+=['y']", 2, "cannot be added"),
        (r"a='\?'", 1, r"\?: of escapes there are"),
        (r"a='\x41'", 1, r"\x: of escapes there are"),
    ],
)
def test_says_what_is_wrong_and_where(text, line, word):
    with pytest.raises(UsageError) as caught:
        read(text)
    assert str(caught.value).startswith(f"f:{line}: ")
    assert word in str(caught.value)


def test_a_setting_knows_its_last_line():
    assert {name: setting.line for name, setting in parse("f", "a=1\nb=[\n1]\na=2").items()} == {
        "a": 4,
        "b": 2,
    }
