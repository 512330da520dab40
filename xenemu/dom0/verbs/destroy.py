"""End the domain at once: `xl destroy`. The guest is not asked."""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Verb


def destroy(control: Control, ask: Ask) -> Answer:
    """The run ends."""
    control.is_destroyed = True
    return {}


VERB: Final = Verb("destroy", "", "End the guest, and the run, at once.", destroy)
