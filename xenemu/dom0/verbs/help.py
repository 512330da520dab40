"""What verbs there are."""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Verb


def describe(control: Control, ask: Ask) -> Answer:
    """Each verb with its words and a sentence."""
    return {
        "verbs": {
            verb.name: {
                "usage": f"{verb.name} {verb.usage}".rstrip(),
                "help": verb.help,
                "fields": [*verb.fields, *(["within"] if verb.done is not None else [])],
            }
            for verb in control.verbs.values()
        }
    }


VERB: Final = Verb("help", "", "List the verbs.", describe)
