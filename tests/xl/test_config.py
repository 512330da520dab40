"""What each key of a guest's configuration means to `xenemu run`."""

from __future__ import annotations

import pytest

from xenemu.errors import UsageError
from xenemu.xl import is_config, read_config

KERNEL = 'kernel = "/k"\n'


@pytest.fixture
def read(tmp_path):
    path = tmp_path / "guest.cfg"

    def read(text):
        path.write_text(text)
        return read_config(path)

    return read


def words(config):
    given = config.arguments({})
    return dict(zip(given[::2], given[1::2], strict=True))


def test_a_kernel_alone_is_a_pv_guest(read):
    config = read(KERNEL)
    assert (str(config.kernel), words(config), config.notes) == ("/k", {"--entry": "pv"}, [])


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ('name = "web"', "--name", "web"),
        ('uuid = "{00010203-0405-0607-0809-0A0B0C0D0E0F}"', "--uuid",
         "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ('type = "pvh"', "--entry", "pvh"),
        ("pvh = 1", "--entry", "pvh"),
        ("pvh = 0", "--entry", "pv"),
        ('builder = "generic"', "--entry", "pv"),
        ('ramdisk = "/i"', "--initrd", "/i"),
        ("memory = 0x200", "--memory", "512M"),
        ("memory = '512'", "--memory", "512M"),
        ("maxmem = 300", "--memory", "300M"),
        ("memory = 256; maxmem = 512", "--maxmem", "512M"),
        ("vcpus = 010", "--vcpus", "8"),
        ('disk = ["/x.img,raw,xvda,rw"]', "--disk", "/x.img,overlay,name=xvda,format=raw"),
        ('disk = ["vg/x,qcow2,hda,r"]', "--disk", "/dev/vg/x,ro,name=hda,format=qcow2"),
        ('disk = ["file:/x.iso,hdc:cdrom,r"]', "--disk", "/x.iso,ro,name=hdc,format=raw"),
        ("p9 = ['tag=root,security_model=none,path=/srv']", "--share", "/srv,tag=root"),
        ("vif = ['']", "--net", "none-but-pcap"),
        ("vif = ['mac=00:16:3e:00:00:01, bridge=xenbr0']", "--net",
         "none-but-pcap,mac=00:16:3e:00:00:01"),
        ('cmdline = "a b"', "--cmdline", "a b"),
        ('root = "/dev/xvda1 ro"', "--cmdline", "root=/dev/xvda1 ro"),
        ('root = "/r"; extra = "quiet"', "--cmdline", "root=/r quiet"),
        ('extra = "quiet"; root = "/r"; cmdline = "x"', "--cmdline", "x"),
    ],
)  # fmt: skip
def test_a_key_is_an_option(read, line, option, value):
    assert words(read(f"{KERNEL}{line}"))[option] == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('seclabel = "x"', "seclabel: no effect: xenemu has no security modules"),
        ("pci = []", "the host's devices stay with the host"),
        ("cmdlin = 'x'", "xl knows no such key; did you mean cmdline?"),
        ("on_crash = 'rename-restart'", "on_crash: as restart: the domain that has ended"),
        ("on_crash = 'coredump-destroy'", "on_crash: as destroy; --core FILE keeps"),
        ("cmdline = 'x'; root = '/r'", "root: no effect: cmdline takes its place"),
        ('bootloader = "pygrub"', "bootloader: no effect: there is a kernel"),
        ('disk = ["/x,,xvda"]', "gone after the run; --disk /x,rw,name=xvda keeps it"),
        ('disk = [",hdc:cdrom,r"]', "disk: hdc: no effect: a drive without a medium"),
        ("p9 = ['tag=r,path=/srv']", "cannot write there; --share /srv,tag=r,rw lets it"),
        ("vif = ['bridge=xenbr0']", "nobody is at the other end"),
        ("pvshim = 1", "needs no shim"),
        ("type = 'pv'; builder = 'hvm'", "type says it, too"),
    ],
)
def test_what_has_no_effect_is_said_with_its_line(read, line, words):
    (note,) = read(f"{KERNEL}{line}").notes
    assert note.line == 2
    assert words in note.text


def test_a_disk_that_is_a_file_here_wants_its_whole_path(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not read(f'{KERNEL}disk = ["disk.img,,xvda,r"]').notes
    (tmp_path / "disk.img").touch()
    (note,) = read(f'{KERNEL}disk = ["disk.img,,xvda,r"]').notes
    assert "disk: as with xl, disk.img is /dev/disk.img; give a file's whole path" in note.text


def test_what_becomes_of_a_guest_that_ends(read):
    options = read(f"{KERNEL}on_reboot = 'restart'\non_crash = 'coredump-destroy'").options
    assert (options["on_reboot"], options["on_crash"]) == (["restart"], ["destroy"])
    assert read(f"{KERNEL}on_soft_reset = 'soft-reset'").options["on_soft_reset"] == ["soft-reset"]
    arguments = read(f"{KERNEL}on_watchdog = 'preserve'").arguments({})
    assert arguments[arguments.index("--on-watchdog") + 1] == "preserve"


def test_remarks_are_in_the_order_of_the_lines(read):
    config = read("seclabel='x'\nroot='/r'\non_crash='coredump-restart'\ncmdline='x'\n" + KERNEL)
    assert [note.line for note in config.notes] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it names no kernel"),
        ('bootloader = "pygrub"', ":1: bootloader: xenemu starts no program"),
        ('\nfirmware = "pvgrub64"', ":2: firmware: xenemu starts no program"),
        (f'{KERNEL}type = "hvm"', ":2: type: hvm: xenemu emulates no PC"),
        (f'{KERNEL}builder = "hvm"', ":2: builder: hvm: xenemu emulates no PC"),
        (f'{KERNEL}type = "x"', ":2: type: 'x': give one of pv, pvh, hvm"),
        (f"{KERNEL}memory = 'x'", ":2: memory: 'x': give a whole number"),
        (f"{KERNEL}memory = [1]", ":2: memory: give a string, not a list"),
        (f"{KERNEL}vcpus = '-1'", ":2: vcpus: '-1': give a whole number"),
        (f"{KERNEL}uuid = 'x'", ":2: uuid: x: this is no UUID"),
        (f"{KERNEL}on_crash = 'x'", ":2: on_crash: 'x': give one of destroy"),
        (f"{KERNEL}disk = ['/x,xvda,w']", ":2: disk: xvda: give one of raw"),
        (f"{KERNEL}disk = '/x,,xvda'", ":2: disk: give a list"),
        (f"{KERNEL}disk = ['/x,vhd,xvda,w']", "qemu-img convert makes either"),
        (f"{KERNEL}disk = ['/x,,xvda,script=s']", "xenemu runs no program"),
        (f"{KERNEL}disk = ['/x,,xvda,backend=d']", "no domain but this one"),
        (f"{KERNEL}disk = ['vdev=xvda,target=/a,b']", "no path with a comma"),
        (f"{KERNEL}p9 = ['tag=root']", ":2: p9: tag=root: it has no path"),
        (f"{KERNEL}p9 = ['tag=r,path=/,security_model=mapped']", "security_models"),
        (f"{KERNEL}vif = ['bridge']", ":2: vif: bridge: give name=value"),
        (f"{KERNEL}name = b", ":2: b: name: give a number"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(read, text, words):
    with pytest.raises(UsageError) as caught:
        read(text)
    assert words in str(caught.value)


def test_another_ramdisk_takes_the_place_of_the_ramdisk(read):
    config = read(f"{KERNEL}ramdisk = '/i'")
    for name in ("initrd", "init", "rootfs", "busybox"):
        assert config.arguments({name: 1}) == ["--entry", "pv"]


def test_a_typed_disk_takes_the_place_of_that_name(read):
    config = read(f"{KERNEL}disk = ['/x,,xvda,r', '/y,,xvdb,r']")
    kept = config.arguments({"disk": ["/z,rw,name=xvda"]})
    assert kept == ["--disk", "/y,ro,name=xvdb,format=raw", "--entry", "pv"]


def test_what_is_typed_takes_the_place_of_what_is_set(read):
    assert read(f"{KERNEL}memory = 512").arguments({"mode": "pv"}) == ["--memory", "512M"]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (KERNEL.encode(), True),
        (b"# a guest\n\nname='x'\n", True),
        (b"disk += ['x']", True),
        (b"", False),
        (b"\x7fELF\nname=1\n\0", False),
        (b"#!/bin/sh\nname=x\n", False),
        (b"only words\n", False),
        (b"\xff\xfename='x'", False),
    ],
)
def test_a_configuration_is_told_from_a_kernel(tmp_path, data, wanted):
    path = tmp_path / "file"
    path.write_bytes(data)
    assert is_config(path) is wanted


def test_what_is_no_file_is_no_configuration(tmp_path):
    assert not is_config(tmp_path)
    assert not is_config(tmp_path / "absent")


def test_a_file_that_is_not_text_or_too_long_is_refused(tmp_path):
    path = tmp_path / "guest.cfg"
    for data, words in ((b"a='\xff'", "not UTF-8"), (b"#" * (1 << 20) + b"\n", "more than 1 MiB")):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=words):
            read_config(path)
