"""What the domain is doing: `xl list`, `xl vcpu-list`, `xl block-list` in one."""

from __future__ import annotations

from typing import Any, Final

from xenemu.abi.sched import SHUTDOWN_crash
from xenemu.dom0.bus import BusBackend
from xenemu.dom0.control import REASONS, Answer, Ask, Control, Verb
from xenemu.hv.state.domain import Domain
from xenemu.hv.state.vcpu import Vcpu
from xenemu.x86.paging import PAGE_SHIFT


def status(control: Control, ask: Ask) -> Answer:
    """All of it."""
    domain, target = control.domain, control.read("memory/target") or ""
    code = SHUTDOWN_crash if control.is_crashed else domain.shutdown_code
    state = "shutdown" if code is not None else _state(domain)
    return {
        "name": domain.name,
        "domid": domain.domid,
        "state": state,
        "reason": None if code is None else REASONS.get(code, str(code)),
        "time_s": control.current.cpu.now_ns / 1e9,
        "memory": {
            "has_kib": domain.pages.tot_pages << PAGE_SHIFT - 10,
            "max_kib": domain.pages.max_pages << PAGE_SHIFT - 10,
            "target_kib": int(target) if target.isdecimal() else None,
        },
        "vcpus": [_vcpu(vcpu, state) for vcpu in domain.vcpus],
        "devices": [
            _device(backend)
            for backend in domain.backends.values()
            if isinstance(backend, BusBackend)
        ],
    }


def _state(domain: Domain) -> str:
    if domain.paused:
        return "paused"
    return "running" if any(vcpu.runnable for vcpu in domain.vcpus) else "blocked"


def _vcpu(vcpu: Vcpu, domains: str) -> dict[str, Any]:
    state = "offline" if not vcpu.online else "blocked" if vcpu.blocked else "running"
    if vcpu.online and domains in ("paused", "shutdown"):
        state = "paused"
    return {"vcpu": vcpu.vcpu_id, "state": state, "mode": vcpu.environment}


def _device(backend: BusBackend) -> dict[str, Any]:
    return {
        "device": backend.label,
        "kind": backend.kind,
        "devid": backend.devid,
        "attached": backend.is_plugged,
        "state": backend.state.name.lower(),
        "trouble": backend.reason or None,
    }


VERB: Final = Verb("status", "", "Tell what the domain is doing, and what it has.", status)
