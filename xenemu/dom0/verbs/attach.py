"""Plug a device into the guest: `xl block-attach`, `xl network-attach`.

The device was named when the run began, with the word `later`, because a confined run opens no
files. One that was detached can be attached again.

In Xen: tools/libs/light/libxl_device.c (libxl__device_generic_add)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb, find_device


def attach(control: Control, ask: Ask) -> None:
    """Make its nodes; Refused if the guest has it."""
    device = find_device(control, ask)
    if device.is_plugged:
        raise Refused(f"the guest has {device.label} already")
    device.insert(control.domain)


def connected(control: Control, ask: Ask) -> Answer | None:
    """The guest's driver has connected to it."""
    device = find_device(control, ask)
    if device.is_plugged and device.state != XenbusState.CONNECTED:
        return {"error": f"{device.label}: {device.reason}"} if device.reason else None
    return {"device": device.label, "devid": device.devid}


def lacking(control: Control, ask: Ask) -> str:
    """How far the guest's driver has come."""
    device = find_device(control, ask)
    state = device.read_number("state", XenbusState.UNKNOWN)
    return f"the guest's driver, in state {state}, has not connected to {device.label}"


VERB: Final = Verb(
    "attach",
    "DEVICE",
    "Plug in a device that was given with the word later, or that was detached.",
    attach,
    connected,
    lacking,
    fields=("device",),
    check=lambda ask: ask.text("device"),
)
