"""Disks in xl's three syntaxes; what xlu_disk_parse of libxlutil 4.17 makes of each."""

from __future__ import annotations

import pytest

from xenemu.xl.disk import Disk, parse_disk

PLAIN = Disk("/x", "raw", "xvda")
READ_ONLY = Disk("/x", "raw", "xvda", writable=False)
MEDIUM = Disk("/x.iso", "raw", "hdc", writable=False, cdrom=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/x,raw,xvda,rw", PLAIN),
        ("/x,,xvda,", PLAIN),
        ("/x,,xvda", PLAIN),
        ("/x,raw,xvda,rw,", PLAIN),
        ("format=raw, vdev=xvda, access=rw, target=/x", PLAIN),
        ("/x,raw,vdev=xvda,access=r", READ_ONLY),
        ("/x,raw,xvda,r,access=w", PLAIN),
        ("/x,raw,xvda,w,format=raw", PLAIN),
        ("/x,raw,xvda,w,devtype=disk", PLAIN),
        ("/x,raw,xvda,w,backendtype=phy,no-discard,direct-io-safe,colo", PLAIN),
        ("vdev=xvda,target=/a,b:c, d ", Disk("/a,b:c, d ", "raw", "xvda")),
        (",,vdev=xvda,target=/x", PLAIN),
        ("/x,qcow2,xvda,w", Disk("/x", "qcow2", "xvda")),
        ("/x,vhd,xvda,w", Disk("/x", "vhd", "xvda")),
        ("/x,raw,xvda,w,script=block-foo", Disk("/x", "raw", "xvda", script="block-foo")),
        ("/x,raw,xvda,w,backend=dd", Disk("/x", "raw", "xvda", backend="dd")),
        ("/x.iso,raw,hdc,cdrom,ro", MEDIUM),
        ("/x.iso,,hdc,devtype=cdrom", MEDIUM),
        ("phy:/x,xvda,w", PLAIN),
        ("file:/x,xvda,r", READ_ONLY),
        ("file:/x,xvda", PLAIN),
        ("file:/x,ioemu:xvda,w", PLAIN),
        ("tap:aio:/x,xvda,w", PLAIN),
        ("tap2:tapdisk:aio:/x,xvda,w", PLAIN),
        ("tap:qcow2:/x,xvda,w", Disk("/x", "qcow2", "xvda")),
        ("file:/x.iso,hdc:cdrom,r", MEDIUM),
        ("file:/x.iso,hdc:cdrom", MEDIUM),
        (",hdc:cdrom,r", Disk("", "raw", "hdc", writable=False, cdrom=True)),
        ("nbd:h:10809,xvda,w", Disk("h:10809", "raw", "xvda", script="block-nbd")),
    ],
)
def test_reads_what_xl_reads(text, wanted):
    assert parse_disk(text) == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x.img,xvda,w", "xvda: give one of raw"),
        ("/x,raw,xvda,bad", "bad: give one of ro"),
        ("/x,raw,xvda,w,nonsense", "a fifth part"),
        ("/x,raw,xvda,rw,,", "a fifth part"),
        ("/x,raw,xvda,w,format=qcow2", "format is there twice"),
        ("xvda,target=/b", "target is there twice"),
        ("/x,raw,xvda,w,foo=bar", "foo: xl knows no such part"),
        ("file:/x,xvda,w,r", "w,r: give one of"),
        ("phy:/x,raw,xvda,w", "give one of ro"),
        ("/x", "no vdev"),
        ("target=/a,xvda", "no vdev"),
        ("vdev=xvda", "no target"),
        ("", "no vdev"),
    ],
)
def test_says_what_is_wrong(text, word):
    with pytest.raises(ValueError, match=word):
        parse_disk(text)
