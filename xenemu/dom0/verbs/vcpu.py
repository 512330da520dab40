"""Have the guest bring a vcpu up, or down: what `xl vcpu-set` does, for one vcpu.

In Xen: tools/libs/light/libxl_domain.c (libxl_set_vcpuonline); Linux's drivers/xen/cpu_hotplug.c
"""

from __future__ import annotations

from typing import Final

from xenemu.dom0.control import Answer, Ask, Control, Refused, Verb

STATES: Final = ("online", "offline")


def set_availability(control: Control, ask: Ask) -> None:
    """Write the vcpu's node; Refused if there is no such vcpu."""
    number, state = _number(control, ask), check(ask)
    control.write(f"cpu/{number}/availability", state)


def check(ask: Ask) -> str:
    """The state; Refused if no guest's vcpu can have it."""
    number, state = ask.number("number"), ask.one_of("state", STATES)
    if not number and state == "offline":
        raise Refused("vcpu 0 stays online")
    return state


def followed(control: Control, ask: Ask) -> Answer | None:
    """The guest has brought it up, or down."""
    number, state = _number(control, ask), ask.text("state")
    if control.domain.vcpus[number].online != (state == "online"):
        return None
    return {"vcpu": number, "state": state}


def lacking(control: Control, ask: Ask) -> str:
    """The guest has left the vcpu as it is; Linux leaves it to others to bring one up."""
    number, state = ask.number("number"), ask.text("state")
    hint = f" (in Linux, write 1 to cpu{number}/online in /sys)" if state == "online" else ""
    return f"the guest has not brought vcpu {number} {state}{hint}"


def _number(control: Control, ask: Ask) -> int:
    number, vcpus = ask.number("number"), control.domain.vcpus
    if number >= len(vcpus):
        raise Refused(f"there is no vcpu {number}; there are {len(vcpus)}, by --maxvcpus")
    return number


VERB: Final = Verb(
    "vcpu",
    "NUMBER online|offline",
    "Have the guest bring a vcpu up or down.",
    set_availability,
    followed,
    lacking,
    fields=("number", "state"),
    check=check,
)
