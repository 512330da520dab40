"""`xenemu run guest.cfg`: the file's options, and those that are typed."""

from __future__ import annotations

import pytest

from tinyguest import POWEROFF, kernel, say, shutdown


@pytest.fixture
def boot(tmp_path, xenemu_run):
    (tmp_path / "kernel").write_bytes(kernel(say(b"up\n") + shutdown(POWEROFF)))
    config = tmp_path / "guest.cfg"

    def boot(text, *options):
        config.write_text(f"kernel = '{tmp_path}/kernel'\n{text}")
        return xenemu_run(config, *options)

    return boot


def test_a_configuration_boots_its_kernel(boot):
    result = boot("memory = 64")
    assert (result.returncode, result.stdout) == (0, b"up\n")


def test_a_remark_is_one_line(boot):
    lines = boot("memory = 64\nseclabel = 'x'").stderr.decode().splitlines()
    assert lines[0].endswith("guest.cfg:3: seclabel: no effect: xenemu has no security modules")


def test_typed_options_win(boot):
    assert boot("memory = 1").returncode == 8  # the kernel does not fit
    assert boot("memory = 1", "--memory", "64M").returncode == 0


def test_what_is_wrong_is_one_line_with_its_place(boot):
    result = boot("memory = x")
    assert result.returncode == 7
    (line,) = result.stderr.decode().splitlines()
    assert "guest.cfg:2: x: memory: give a number" in line


def test_an_option_of_the_file_is_judged_as_one_that_is_typed(boot):
    result = boot("vcpus = 1000")
    assert result.returncode == 7
    assert b"--vcpus 1000: give a number of vcpus" in result.stderr
