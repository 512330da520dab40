"""What gdb is told of the CPU: its registers in order, in a 64-bit or a 32-bit layout.

The layout follows the kernel's file, and not the CPU's mode. gdb takes one description for a
connection, and rejects a description that does not match the file. So a 64-bit kernel has 64-bit
registers in its 32-bit entry code, too.

gdb manual: Target Descriptions; i386 Features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xenemu.records import dataclass


@dataclass(frozen=True)
class Register:
    """One register: its place in the order is its number to gdb."""

    name: str
    bits: int
    type: str
    group: str = ""  # other debuggers go by it; gdb decides that for x86 itself, by the type

    @property
    def size(self) -> int:
        """In bytes."""
        return self.bits // 8


@dataclass(frozen=True)
class Description:
    """A description: the architecture, and the features with their registers."""

    architecture: str
    features: dict[str, tuple[Register, ...]]

    @property
    def registers(self) -> list[Register]:
        """All of them, by number."""
        return [register for group in self.features.values() for register in group]


SEGMENTS: Final = "cs ss ds es fs gs".split()
FPU: Final = "fctrl fstat ftag fiseg fioff foseg fooff fop".split()
GENERAL64: Final = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15".split()
GENERAL32: Final = "eax ecx edx ebx esp ebp esi edi".split()
POINTERS: Final = {"rbp", "rsp", "ebp", "esp"}

EFLAGS: Final = {
    "": 1, "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11,
    "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
CR0: Final = {
    "PE": 0, "MP": 1, "EM": 2, "TS": 3, "ET": 4, "NE": 5, "WP": 16, "AM": 18, "NW": 29, "CD": 30,
    "PG": 31,
}  # fmt: skip
CR4: Final = {
    "VME": 0, "PVI": 1, "TSD": 2, "DE": 3, "PSE": 4, "PAE": 5, "MCE": 6, "PGE": 7, "PCE": 8,
    "OSFXSR": 9, "OSXMMEXCPT": 10, "UMIP": 11, "FSGSBASE": 16, "PCIDE": 17, "OSXSAVE": 18,
    "SMEP": 20, "SMAP": 21,
}  # fmt: skip
EFER: Final = {"SCE": 0, "LME": 8, "LMA": 10, "NXE": 11}
FLAG_TYPES: Final = {"eflags": EFLAGS, "cr0": CR0, "cr4": CR4, "efer": EFER}

VECTOR_TYPE: Final = """\
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
  <field name="v4_float" type="v4f"/>
  <field name="v2_double" type="v2d"/>
  <field name="v16_int8" type="v16i8"/>
  <field name="v8_int16" type="v8i16"/>
  <field name="v4_int32" type="v4i32"/>
  <field name="v2_int64" type="v2i64"/>
  <field name="uint128" type="uint128"/>
</union>
"""


def _core(general: list[str], instruction_pointer: str, bits: int) -> Iterator[Register]:
    for name in general:
        yield Register(name, bits, "data_ptr" if name in POINTERS else f"int{bits}")
    yield Register(instruction_pointer, bits, "code_ptr")
    yield Register("eflags", 32, "eflags")
    yield from (Register(name, 32, "int32") for name in SEGMENTS)
    yield from (Register(f"st{n}", 80, "i387_ext") for n in range(8))
    yield from (Register(name, 32, "int", "float") for name in FPU)


def _sse(count: int) -> Iterator[Register]:
    yield from (Register(f"xmm{n}", 128, "vec128") for n in range(count))
    yield Register("mxcsr", 32, "int", "vector")


def _system(bits: int) -> Iterator[Register]:
    if bits == 64:
        yield Register("k_gs_base", 64, "int64", "system")
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        kind = name if name in FLAG_TYPES else f"int{bits}"
        yield Register(name, bits, kind, "system")


XEN: Final = (
    Register("xen_event_mask", 32, "int32", "system"),
    Register("xen_kernel_root", 64, "int64", "system"),
    Register("xen_user_root", 64, "int64", "system"),
    Register("xen_user_mode", 32, "int32", "system"),
)
BASES: Final = (Register("fs_base", 64, "int64"), Register("gs_base", 64, "int64"))

DESCRIPTION64: Final = Description(
    "i386:x86-64",
    {
        "org.gnu.gdb.i386.core": tuple(_core(GENERAL64, "rip", 64)),
        "org.gnu.gdb.i386.sse": tuple(_sse(16)),
        "org.gnu.gdb.i386.segments": BASES,
        "org.xenemu.system": tuple(_system(64)),
        "org.xenemu.xen": XEN,
    },
)
DESCRIPTION32: Final = Description(
    "i386",
    {
        "org.gnu.gdb.i386.core": tuple(_core(GENERAL32, "eip", 32)),
        "org.gnu.gdb.i386.sse": tuple(_sse(8)),
        "org.xenemu.system": tuple(_system(32)),
        "org.xenemu.xen": XEN,
    },
)


def describe(description: Description) -> str:
    """The target description, in XML."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        "<target>",
        f"<architecture>{description.architecture}</architecture>",
    ]
    for name, registers in description.features.items():
        lines.append(f'<feature name="{name}">')
        lines += _types(registers)
        lines += [_describe(register) for register in registers]
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""])


def _types(registers: tuple[Register, ...]) -> Iterator[str]:
    for register in registers:
        bits = FLAG_TYPES.get(register.type)
        if bits:
            yield f'<flags id="{register.type}" size="{register.size}">'
            yield from (f'<field name="{n}" start="{bit}" end="{bit}"/>' for n, bit in bits.items())
            yield "</flags>"
    if any(register.type == "vec128" for register in registers):
        yield VECTOR_TYPE


def _describe(register: Register) -> str:
    group = f' group="{register.group}"' if register.group else ""
    return f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>'
