"""Take a device from the guest: `xl block-detach`, `xl network-detach`.

The toolstack asks both ends to close, and waits until the backend has. Then it removes the nodes.
If the guest does not let the device go in time, all stays, and `force` takes it anyway.

In Xen: tools/libs/light/libxl_device.c (libxl__initiate_device_generic_remove)
"""

from __future__ import annotations

from typing import Final

from xenemu.abi.io.xenbus import XenbusState
from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb, find_device


def detach(control: Control, ask: Ask) -> Answer | None:
    """Ask for it; Refused if the guest does not have it."""
    device = find_device(control, ask)
    is_forced = check(ask)
    if not device.is_plugged:
        raise Refused(f"the guest does not have {device.label}")
    if is_forced:
        device.remove(control.domain)
        return {"device": device.label, "forced": True}
    device.ask_back()
    return None


def check(ask: Ask) -> bool:
    """Whether it is taken by force; Refused."""
    ask.text("device")
    return ask.one_of("force", ("yes", "no"), "no") == "yes"


def closed(control: Control, ask: Ask) -> Answer | None:
    """The backend has closed, and the nodes are gone."""
    device = find_device(control, ask)
    if device.is_plugged:
        if not (device.gone or device.state == XenbusState.CLOSED):
            return None
        device.remove(control.domain)
    return {"device": device.label}


def lacking(control: Control, ask: Ask) -> str:
    """The guest has kept it."""
    label = find_device(control, ask).label
    return f"the guest has not let {label} go (force=yes takes it anyway)"


VERB: Final = Verb(
    "detach",
    "DEVICE [force=yes]",
    "Take a device from the guest, which has to let it go.",
    detach,
    closed,
    lacking,
    fields=("device", "force"),
    check=check,
)
