"""guests/fetch.py, on packages made here: no network, no apt."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from guests import fetch
from guests.fetch import FetchError, Image

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="not Debian: no dpkg-deb")


class FakeApt:
    """Serves one package, whose version can be set, and counts downloads."""

    def __init__(self, version="1:2.0"):
        self.version = version
        self.downloads = []

    def resolve(self, metapackage):
        return metapackage.removeprefix("meta-")

    def download(self, package, folder):
        self.downloads.append(package)
        if package != "kernel":
            raise FetchError(f"Unable to locate package {package}")
        return make_deb(folder, self.version)


def make_deb(folder, version):
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: kernel\nVersion: {version}\nArchitecture: all\n"
    control += "Maintainer: Nobody <nobody@example.org>\nDescription: made for a test\n"
    (root / "DEBIAN/control").write_text(control)
    for name in ("boot/vmlinuz-2", "include/xen/xen.h", "include/xen/io/ring.h"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "boot/vmlinuz-2").chmod(0o755)
    deb = folder / "kernel_2.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, deb], check=True)
    return deb


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/xenemu"


KERNEL = Image("vm", metapackage="meta-kernel", file="boot/vmlinuz-*")
HEADERS = Image("headers", metapackage="meta-kernel", tree="include/xen")


def test_file_lands_in_the_cache_under_its_version(cache):
    (entry,), failed = fetch.fetch([KERNEL], FakeApt())
    assert not failed
    assert entry == fetch.cached("vm")
    assert (entry.version, entry.path) == ("1:2.0", cache / "images/vm/2.0/vmlinuz-2")
    assert entry.path.read_text() == "boot/vmlinuz-2"
    assert entry.path.stat().st_mode & 0o777 == 0o755


def test_tree_keeps_its_folders():
    (entry,), _ = fetch.fetch([HEADERS], FakeApt())
    assert (entry.path / "io/ring.h").read_text() == "include/xen/io/ring.h"
    assert not (entry.path / "io/ring.h").stat().st_mode & 0o111
    assert not list(entry.path.parent.rglob("vmlinuz*"))


def test_package_of_several_images_is_downloaded_once():
    apt = FakeApt()
    done, _ = fetch.fetch([KERNEL, HEADERS], apt)
    assert len(done) == 2
    assert apt.downloads == ["kernel"]


def test_one_failure_leaves_the_others():
    done, failed = fetch.fetch([Image("gone", package="gone", file="x"), KERNEL], FakeApt())
    assert [entry.name for entry in done] == ["vm"]
    assert str(failed["gone"]) == "Unable to locate package gone"
    assert fetch.cached("gone") is None


def test_file_that_is_not_in_the_package_is_refused():
    done, failed = fetch.fetch([Image("vm", package="kernel", file="boot/nothing")], FakeApt())
    assert not done
    assert str(failed["vm"]) == "kernel_2.0_all.deb has no boot/nothing"
    assert fetch.cached("vm") is None


def test_a_broken_package_is_one_failure(monkeypatch):
    monkeypatch.setattr(FakeApt, "download", lambda self, package, folder: folder / "no.deb")
    done, failed = fetch.fetch([KERNEL], FakeApt())
    assert (done, list(failed)) == ([], ["vm"])
    assert fetch.cached("vm") is None


def test_a_later_version_takes_the_place_of_an_earlier():
    fetch.fetch([KERNEL], FakeApt("1.0"))
    fetch.fetch([KERNEL], FakeApt("2.0"))
    assert fetch.cached("vm").version == "2.0"


def test_record_of_a_file_that_went_away_is_no_hit():
    (entry,), _ = fetch.fetch([KERNEL], FakeApt())
    entry.path.unlink()
    assert fetch.cached("vm") is None


def test_cached_image_needs_no_apt(monkeypatch, capsys):
    fetch.fetch([Image("busybox", package="kernel", file="boot/*")], FakeApt())
    monkeypatch.setattr(sys, "argv", ["fetch.py", "busybox"])
    monkeypatch.setattr(fetch, "Apt", None)
    assert fetch.main() == 0
    assert capsys.readouterr().out.split()[:2] == ["busybox", "1:2.0"]


def test_what_cannot_be_had_is_one_line_and_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fetch.py", "busybox"])
    monkeypatch.setattr(fetch, "Apt", lambda root, architecture: FakeApt())
    assert fetch.main() == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{'busybox':20} unavailable: Unable to locate package busybox-static\n"


def test_every_declaration_names_one_package_and_one_thing_in_it():
    for image in fetch.declared().values():
        if image.system:
            assert image == Image(image.name, system=image.system)
            continue
        named = (image.package, image.metapackage, image.debug_of)
        assert len(list(filter(None, named))) == 1, image.name
        assert [bool(image.file), bool(image.files), bool(image.tree)].count(True) == 1, image.name


def test_several_files_are_a_directory():
    patterns = ("*/xen.h", "boot/vm*")
    (entry,), failed = fetch.fetch([Image("some", package="kernel", files=patterns)], FakeApt())
    assert not failed
    assert sorted(path.name for path in entry.path.iterdir()) == ["vmlinuz-2", "xen.h"]
    assert fetch.cached("some") == entry


def test_a_folder_that_lacks_what_is_declared_by_now_is_not_in_the_cache(monkeypatch):
    image = Image("some", package="kernel", files=("*/xen.h",))
    (entry,), _ = fetch.fetch([image], FakeApt())
    wanted = [image, replace(image, files=("*/xen.h", "*/new.h"))]
    for now, found in zip(wanted, (entry, None), strict=True):
        monkeypatch.setattr(fetch, "declared", lambda now=now: {"some": now})
        assert fetch.cached("some") == found


def test_fewer_files_than_patterns_are_too_few():
    image = Image("some", package="kernel", files=("*/xen.h", "absent"))
    done, failed = fetch.fetch([image], FakeApt())
    assert not done and "*/xen.h, absent" in str(failed["some"])


def test_a_root_file_system_is_named_by_what_is_in_it(cache, monkeypatch):
    def make(packages, folder):
        (folder / "root.tar").write_text(" ".join(packages))
        return "cafe"

    monkeypatch.setattr(fetch.rootfs, "make", make)
    made = fetch.make_system(Image("deb", system=("init", "sh")))
    assert made == fetch.cached("deb")
    assert (made.version, made.path) == ("cafe", cache / "images/deb/cafe")
    assert (made.path / "root.tar").read_text() == "init sh"
    assert fetch.make_system(Image("deb", system=("init", "sh"))) == made
    assert [path.name for path in made.path.parent.iterdir()] == ["cafe"]


def test_what_is_not_complete_is_not_in_the_cache(cache, monkeypatch):
    def make(packages, folder):
        (folder / "root.tar").touch()
        raise fetch.rootfs.RootfsError("no mmdebstrap")

    monkeypatch.setattr(fetch.rootfs, "make", make)
    with pytest.raises(fetch.rootfs.RootfsError):
        fetch.make_system(Image("deb", system=("sh",)))
    assert fetch.cached("deb") is None
    assert not list((cache / "images/deb").iterdir())
