"""What verbs there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xenemu.dom0.control import Answer, Ask, Control, Verb


def describe(verbs: Mapping[str, Verb]) -> dict[str, Any]:
    """Each verb with its words, a sentence, and the fields of its requests."""
    return {
        verb.name: {
            "usage": f"{verb.name} {verb.usage}".rstrip(),
            "help": verb.help,
            "fields": [*verb.fields, *(["within"] if verb.done is not None else [])],
        }
        for verb in verbs.values()
    }


def answer(control: Control, ask: Ask) -> Answer:
    """All that this control knows."""
    return {"verbs": describe(control.verbs)}


VERB: Final = Verb("help", "", "List the verbs.", answer)
