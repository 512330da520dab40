"""Build the C shim `xenemu/cpu/_shim.so` with the package; the rest is in pyproject.toml.

The shim is loaded with ctypes, not imported: it needs no Python headers, and one file serves
every Python version. So does a wheel. What `ship/share.py` has made goes into it, too.
"""

import os
import shutil
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildShim(build_ext):
    """Build a plain shared library where setuptools would build an extension module."""

    def build_extension(self, ext: Extension) -> None:
        compiler = self.compiler.compiler_so[0]
        if not shutil.which(compiler):
            raise SystemExit(
                "xenemu needs a C compiler to build its engine shim: "
                f"install gcc (Debian: apt-get install gcc libc6-dev); {compiler} not found"
            )
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # no PyInit function; everything not static is exported

    def get_libraries(self, ext: Extension) -> list[str]:
        return list(ext.libraries)  # no libpython


class AnyPython(bdist_wheel):
    """Say that a wheel serves every Python of its platform."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


SHIM = Extension(
    "xenemu.cpu._shim",
    sources=sorted(glob("xenemu/cpu/native/*.c")),
    depends=sorted(glob("xenemu/cpu/native/*.[hd]*")),
    libraries=["dl"],
    # A field of Unicorn's is read as more than one type.
    extra_compile_args=[
        *("-std=gnu11", "-O2", "-fno-strict-aliasing", "-fPIC", "-fvisibility=default"),
        *("-Wall", "-Wextra", "-Werror=implicit-function-declaration"),
    ],
    extra_link_args=["-Wl,--build-id=none"],  # a digest of the folder that it is built in, too
)

# What dom0's backends leave to C: it knows neither Unicorn nor the shim.
BLKIF = Extension(
    "xenemu.dom0._blkif",
    sources=["xenemu/dom0/native/blkif.c"],
    depends=["xenemu/dom0/native/block_lane.def", "xenemu/cpu/native/page_info.def"],
    extra_compile_args=SHIM.extra_compile_args,
    extra_link_args=SHIM.extra_link_args,
)

SHARED = [
    (folder, sorted(os.path.join(folder, name) for name in names))
    for folder, _, names in sorted(os.walk("share"))
    if names
]

setup(
    ext_modules=[SHIM, BLKIF],
    cmdclass={"build_ext": BuildShim, "bdist_wheel": AnyPython},
    data_files=SHARED,
)
