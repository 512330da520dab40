"""network/asked: what --net understands."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenemu.errors import UsageError
from xenemu.network.asked import Asked, Forward, parse_net


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("user", Asked("user", True)),
        ("none-but-pcap", Asked("none-but-pcap")),
        ("socket:/tmp/wire", Asked("socket:/tmp/wire", path=Path("/tmp/wire"))),
        ("none-but-pcap,later", Asked("", later=True)),
        ("user,mac=00:16:3E:00:00:01", Asked("", True, mac="00:16:3e:00:00:01")),
        ("user,hostfwd=tcp:2222:22", Asked("", True, forwards=(Forward("tcp", "", 2222, 22),))),
        ("user,hostfwd=tcp::2222-:22", Asked("", True, forwards=(Forward("tcp", "", 2222, 22),))),
        (
            "user,hostfwd=udp:127.0.0.1:53-:5353,hostfwd=tcp:[::1]:80:8080",
            Asked(
                "",
                True,
                forwards=(Forward("udp", "127.0.0.1", 53, 5353), Forward("tcp", "::1", 80, 8080)),
            ),
        ),
    ],
)
def test_what_is_asked_for(text: str, asked: Asked) -> None:
    found = parse_net("--net", text)
    assert found.text == text
    fields = ("is_user", "path", "mac", "forwards", "later")
    assert [getattr(found, name) for name in fields] == [getattr(asked, name) for name in fields]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "give user, socket:PATH or none-but-pcap"),
        ("tap", "give user, socket:PATH or none-but-pcap"),
        ("socket:", "give user, socket:PATH or none-but-pcap"),
        ("user,model=virtio", "'model=virtio' is unknown; there are hostfwd=, mac= and later"),
        ("socket:/x,hostfwd=tcp:1:2", "'hostfwd=tcp:1:2' is unknown; there are mac="),
        ("user,mac=1", "mac= wants an address such as"),
        ("user,mac=01:16:3e:00:00:01", "the first byte must be even"),
        ("user,hostfwd=tcp:22", "hostfwd= wants"),
        ("user,hostfwd=tcp:0:22", "hostfwd= wants"),
        ("user,hostfwd=tcp:70000:22", "hostfwd= wants"),
        ("user,hostfwd=tcp:here:1:2", "here is no IP address"),
    ],
)
def test_what_is_not_understood(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_net("--net", text)
    assert str(caught.value).startswith(f"--net {text}: ") and problem in str(caught.value)
