"""Every struct of xenemu.abi against Xen's own headers, as a C compiler lays them out.

Per width a C file is compiled whose data are each struct's sizeof and offsetofs; the numbers are
read back from the object file, so that nothing runs and no 32-bit C library is needed. The headers
are those of Debian's libxen-dev, from the image cache.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import struct
import subprocess
import typing

import pytest
from elftools.elf.elffile import ELFFile

import xenemu.abi
from xenemu.abi.layout import Struct

HEADER = re.compile(r"^Header: (.*)$", re.MULTILINE)
OPTION = {8: "-m64", 4: "-m32"}
UNIONS = {"grant_entry_v2"}
ONLY_64 = {"iret_context", "cpu_user_regs"}  # the 32-bit interface has no such struct
ONLY_32 = {"cpu_user_regs32": "cpu_user_regs"}  # and what C calls it

# Members of nested structs and unions, as C names them.
MEMBERS = {
    "gnttab_copy": {
        "source_u": "source.u",
        "source_domid": "source.domid",
        "source_offset": "source.offset",
        "dest_u": "dest.u",
        "dest_domid": "dest.domid",
        "dest_offset": "dest.offset",
    },
    "xen_pmu_params": {"version_maj": "version.maj", "version_min": "version.min"},
    "gnttab_cache_flush": {"dev_bus_addr": "a.dev_bus_addr"},
    "grant_entry_v2": {
        "flags": "hdr.flags",
        "domid": "hdr.domid",
        "page_off": "sub_page.page_off",
        "length": "sub_page.length",
        "frame": "full_page.frame",
    },
}


def structs():
    """Find the subclasses of Struct, each in the module that declares it."""
    for info in pkgutil.walk_packages(xenemu.abi.__path__, "xenemu.abi."):
        for cls in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(cls) and cls.__module__ == info.name and cls.__base__ is Struct:
                yield cls


STRUCTS = list(structs())


def test_each_struct_has_the_size_it_declares():
    for cls in STRUCTS:
        assert cls.sizeof(8) and cls.sizeof(4), cls


def includes(module):
    """Name the headers of a module; xen.h itself brings those of the architecture."""
    found = HEADER.search(importlib.import_module(module).__doc__)
    assert found, f"{module} names no Header:"
    names = [name.strip().removeprefix("public/") for name in found[1].split(",")]
    return [name for name in names if not name.startswith("arch-x86/xen")]


def fields(cls, width):
    """List the fields to compare: not padding, nor what C lacks at this width (no bytes)."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return [
        name
        for name in cls.layout(width).offsets
        if not name.lstrip("_").startswith(("pad", "rsvd", "dest_pad"))
        and hints[name].__metadata__[0].codes(width)[0] != "0s"
    ]


def places(cls, width):
    """List a struct's sizeof and offsetofs, as C spells them."""
    name = ONLY_32.get(cls.__name__, cls.__name__)
    tag = f"{'union' if cls.__name__ in UNIONS else 'struct'} {name}"
    members = MEMBERS.get(cls.__name__, {})
    named = [members.get(name, name.rstrip("_")) for name in fields(cls, width)]
    return [f"sizeof({tag})", *(f"offsetof({tag}, {place})" for place in named)]


def compiled(expressions, width, headers, out):
    """Ask the compiler for numbers."""
    names = dict.fromkeys(name for cls in STRUCTS for name in includes(cls.__module__))
    lines = [f"#include <{name}>" for name in ["stddef.h", "stdint.h", "xen.h", *names]]
    values = ",\n".join(expressions)
    lines.append(f'__attribute__((section(".abi"))) uint32_t v[] = {{ {values} }};\n')
    gcc = ["gcc", OPTION[width], "-ffreestanding", "-D__XEN_TOOLS__", f"-I{headers}"]
    result = subprocess.run(
        [*gcc, "-x", "c", "-c", "-", "-o", out],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    data = ELFFile.load_from_path(out).get_section_by_name(".abi").data()
    return struct.unpack(f"<{len(expressions)}I", data)


@pytest.mark.parametrize("width", OPTION)
def test_layout(width, guest_image, tmp_path):
    others = ONLY_32 if width == 8 else ONLY_64
    structs = [cls for cls in STRUCTS if cls.__name__ not in others]
    expressions = [place for cls in structs for place in places(cls, width)]
    numbers = iter(compiled(expressions, width, guest_image("xen-headers"), tmp_path / "layout.o"))
    for cls in structs:
        layout = cls.layout(width)
        assert layout.size == next(numbers), cls
        for name in fields(cls, width):
            assert layout.offsets[name] == next(numbers), (cls, name)


def test_structs_are_found():
    assert "start_info" in {cls.__name__ for cls in STRUCTS}
