"""Hear what happens to the domain, as lines of their own."""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Verb


def listen(control: Control, ask: Ask) -> Answer:
    """Send whoever asks all events from now on."""
    if ask.who not in control.listeners:
        control.listeners.append(ask.who)
    return {}


VERB: Final = Verb(
    "events", "", "Tell of pause, unpause, shutdown and restart from now on.", listen
)
