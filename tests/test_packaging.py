"""What `pip install .` gives: the packages, the command, and the C shim."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIM_C = "int shim_answer(void) { return 42; }\n"
LIBRARIES = {"xenemu/cpu/native/shim.c": "_shim.so", "xenemu/dom0/native/blkif.c": "_blkif.so"}


def setup_py(tree, *arguments, **environment):
    """Run setup.py, as the build backend does, in a tree that holds nothing but libraries in C."""
    shutil.copy(ROOT / "setup.py", tree)
    for source in LIBRARIES:
        (tree / source).parent.mkdir(parents=True)
        (tree / source).write_text(SHIM_C)
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_shim_is_built_beside_its_source(tmp_path):
    result = setup_py(tmp_path, "build_ext", "--inplace")
    assert result.returncode == 0, result.stderr
    for source, library in LIBRARIES.items():
        shim = ctypes.CDLL(str((tmp_path / source).parent.parent / library))
        assert shim.shim_answer() == 42


def test_shim_needs_no_python(tmp_path):
    setup_py(tmp_path, "build_ext", "--inplace")
    for source, library in LIBRARIES.items():
        assert b"libpython" not in ((tmp_path / source).parent.parent / library).read_bytes()


def test_a_wheel_serves_every_python_and_has_what_is_shared(tmp_path):
    (tmp_path / "share/man/man1").mkdir(parents=True)
    (tmp_path / "share/man/man1/xenemu.1").write_text(".TH")
    result = setup_py(tmp_path, "bdist_wheel")
    assert result.returncode == 0, result.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"xenemu/cpu/_shim.so", "xenemu/dom0/_blkif.so"} <= set(names)
    assert any(name.endswith(".data/data/share/man/man1/xenemu.1") for name in names)


def test_no_compiler_is_one_line(tmp_path):
    result = setup_py(tmp_path, "build_ext", "--inplace", CC="no-such-compiler")
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("xenemu needs a C compiler to build its engine shim: install gcc")


@pytest.mark.parametrize("package", ["xenemu", "hypercalls"])
def test_every_folder_with_code_is_a_package(package):
    """A folder without __init__.py is imported from a checkout, but left out of the wheel."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert folders
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    assert (ROOT / package / "py.typed").exists()


def test_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="xenemu")
    assert callable(command.load())


def test_pytest_plugin_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = importlib.import_module(project["entry-points"]["pytest11"]["xenemu"])
    assert callable(module.pytest_addoption)
