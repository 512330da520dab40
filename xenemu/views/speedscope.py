"""A profile for speedscope: its own file format, with a profile for each vcpu.

The samples of a vcpu are in order, each with the time that it stands for. So speedscope can show
them by time as well as sorted.

speedscope: src/lib/file-format-spec.ts
"""

from __future__ import annotations

import json
from typing import Final

from xenemu.views.profile import Profile

SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"
EXPORTER: Final = "xenemu"


def speedscope(profile: Profile, title: str) -> str:
    """The file, JSON."""
    frames: dict[str, int] = {}
    stacks = [[frames.setdefault(name, len(frames)) for name in names] for names in profile.stacks]
    profiles = [
        {
            "type": "sampled",
            "name": f"vcpu {vcpu_id}",
            "unit": "nanoseconds",
            "startValue": 0,
            "endValue": len(samples) * profile.every_ns,
            "samples": [stacks[number] for number in samples],
            "weights": [profile.every_ns] * len(samples),
        }
        for vcpu_id, samples in profile.of_vcpu.items()
    ]
    document = {
        "$schema": SCHEMA,
        "name": title,
        "exporter": EXPORTER,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
    }
    return json.dumps(document) + "\n"
