"""A whole Debian, with systemd and its own initramfs, from a disk: the plan in docs/ci.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from guests import rootfs
from xenemu.smoke.guest import Guest
from xenemu.smoke.plan import load_plan

DOCUMENT = Path(__file__).parents[1] / "docs/ci.md"
PLAN = re.compile(r"^```toml\n(# system\.toml\n.*?)^```$", re.MULTILINE | re.DOTALL)


def tool(name: str, *arguments: str | Path) -> str:
    """What a program of e2fsprogs prints."""
    path = shutil.which(name, path=rootfs.search_path())
    assert path is not None
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return result.stdout


def test_a_debian_comes_up_and_what_it_writes_is_on_its_disk(guest_image, tmp_path):
    image = guest_image("debian-12-system")
    (tmp_path / "system").mkdir()
    for name in ("vmlinuz", "initrd.img"):
        (tmp_path / "system" / name).symlink_to(image / name)
    disk = tmp_path / "system/root.ext4"
    subprocess.run(["cp", "--sparse=always", image / disk.name, disk], check=True)
    text = PLAN.search(DOCUMENT.read_text())[1]
    assert "disk" in tomllib.loads(text)["boot"][0]
    plan = tmp_path / "system.toml"
    plan.write_text(text.replace("root.ext4", "root.ext4,rw"))
    (boot,) = load_plan(plan)
    with Guest(boot) as guest:
        result = guest.finish()
    assert result.verdict.value == "pass"
    tool("fsck.ext4", "-fn", disk)
    assert tool("debugfs", "-R", "cat /root/file", disk) == "hello\n"
