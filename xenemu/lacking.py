"""Which feature an undefined instruction would have needed, if the host's CPU does not have it.

capstone knows which instructions belong to a feature, for the features that it has.

Intel SDM volume 2.
"""

from __future__ import annotations

from typing import Final

import capstone
from capstone import x86 as cs

from xenemu.hv.cpu import Undefined

MODES: Final = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
GROUPS: Final = {
    cs.X86_GRP_AVX: "AVX",
    cs.X86_GRP_AVX2: "AVX2",
    cs.X86_GRP_AVX512: "AVX-512",
    cs.X86_GRP_FMA: "FMA",
    cs.X86_GRP_F16C: "F16C",
    cs.X86_GRP_BMI: "BMI1",
    cs.X86_GRP_BMI2: "BMI2",
    cs.X86_GRP_ADX: "ADX",
    cs.X86_GRP_SHA: "SHA",
    cs.X86_GRP_RTM: "RTM",
}
# Those that are in no group, by how their names begin.
NAMES: Final = {
    "vfmadd": "FMA", "vfmsub": "FMA", "vfnmadd": "FMA", "vfnmsub": "FMA",
    "xsave": "XSAVE", "xrstor": "XSAVE", "xgetbv": "XSAVE", "xsetbv": "XSAVE",
    "clac": "SMAP", "stac": "SMAP", "rdpid": "RDPID", "invpcid": "INVPCID",
    "clflushopt": "CLFLUSHOPT", "clwb": "CLWB", "movdir": "MOVDIRI", "rdpkru": "PKU",
    "wrpkru": "PKU",
}  # fmt: skip


def lacking_feature(undefined: Undefined) -> tuple[str, str] | None:
    """The instruction, disassembled, and the feature; None if it does not lack one."""
    reader = capstone.Cs(capstone.CS_ARCH_X86, MODES[undefined.bits])
    reader.syntax, reader.detail = capstone.CS_OPT_SYNTAX_ATT, True
    for insn in reader.disasm(undefined.code, undefined.rip, 1):
        named = (feature for name, feature in NAMES.items() if insn.mnemonic.startswith(name))
        feature = next((GROUPS[group] for group in insn.groups if group in GROUPS), None)
        feature = feature or next(named, None)
        return (f"{insn.mnemonic} {insn.op_str}".strip(), feature) if feature else None
    return None


def undefined_lines(undefined: Undefined, place: str) -> list[str]:
    """Explain an undefined instruction at `place` to a person, if it lacks a feature."""
    found = lacking_feature(undefined)
    if not found:
        return []
    text, feature = found
    return [
        f"{place}: {text}",
        f"the instruction is {feature}: this CPU does not have that, and CPUID does not offer it."
        " What is built for x86-64-v2 runs; see docs/limits.md",
    ]
