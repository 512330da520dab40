"""`xenemu run --timeline`: its forms, what it does not change, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tinyguest
from xenemu.outcome import EXIT_IMAGE

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "kernel"
    path.write_bytes(tinyguest.kernel(tinyguest.shutdown(tinyguest.POWEROFF)))
    return str(path)


def test_a_timeline_has_the_last_call_in_either_form(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    names = ("first.json", "again.JSON", "first.pftrace", "again.pftrace")
    for name in names:
        assert xenemu_run(kernel, "--timeline", tmp_path / name).returncode == 0
    json_, json_again, trace, trace_again = ((tmp_path / name).read_bytes() for name in names)
    assert (json_, trace) == (json_again, trace_again)
    assert "sched_op(shutdown)" in [e.get("name") for e in json.loads(json_)["traceEvents"]]
    assert b"sched_op(shutdown)" in trace


def test_perfettos_classes_read_a_timeline_whose_slices_nest(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    assert xenemu_run(kernel, "--timeline", tmp_path / "t.pb", "--vcpus", "2").returncode == 0
    tracks: dict[int, str] = {}
    depth: dict[int, int] = {}
    for packet in proto.Trace.FromString((tmp_path / "t.pb").read_bytes()).packet:
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
        elif packet.HasField("track_event"):
            event = packet.track_event
            step = {proto.TrackEvent.TYPE_SLICE_BEGIN: 1, proto.TrackEvent.TYPE_SLICE_END: -1}
            depth[event.track_uuid] = depth.get(event.track_uuid, 0) + step.get(event.type, 0)
            assert depth[event.track_uuid] >= 0
    assert not any(depth.values())
    used = {tracks[uuid] for uuid in depth}
    assert {"boot", "vcpu 0 hypercalls", "vcpu 0 runstate", "vcpu 1 runstate"} <= used


def test_a_profile_has_the_form_that_its_name_asks_for(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    names = ("p.json", "p.SVG", "p.folded")
    files = [option for name in names for option in ("--profile", tmp_path / name)]
    result = xenemu_run(kernel, *files, "--profile", "-", "--profile-every", "1us")
    assert result.returncode == 0
    assert b" samples, one each 0.001 ms in which a vcpu ran\n" in result.stderr
    json_, svg, folded = ((tmp_path / name).read_text() for name in names)
    assert json.loads(json_)["exporter"] == "xenemu"
    assert svg.startswith("<svg ")
    assert "{" not in folded


def test_a_map_of_memory_is_a_picture_of_the_end(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    file = tmp_path / "memory.svg"
    assert xenemu_run(kernel, "--memory-map", file, "--on-reboot", "restart").returncode == 0
    assert "code that ran" in file.read_text()


def test_the_guest_runs_the_same(kernel: str, tmp_path: Path, xenemu_run: Run) -> None:
    without = xenemu_run(kernel).stderr.rpartition(b", ")[0]
    watched = xenemu_run(kernel, "--timeline", tmp_path / "t.pb", "--timeline-host-time")
    assert watched.stderr.rpartition(b", ")[0] == without
    assert b"host CPU" in (tmp_path / "t.pb").read_bytes()


def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    kernel: str, tmp_path: Path, xenemu_run: Run
) -> None:
    file = tmp_path / "t.pftrace"
    for options, why in (
        (["--timeline-host-time"], "--timeline-host-time: say where to, with --timeline FILE"),
        (
            ["--timeline", file, "--gdb", f"unix:{tmp_path}/s"],
            "--timeline: not with --gdb, where a guest may go back in time",
        ),
        (
            ["--timeline", file, "--on-reboot", "restart"],
            "--timeline: this is of one boot; leave it out, or --on-... restart",
        ),
        (
            ["--profile", file],
            f"--profile {file}: end its name in .json for speedscope, .svg for a flame graph,"
            " .folded or .txt for folded stacks, or say - for standard error",
        ),
        (
            ["--timeline", f"{file}.txt"],
            f"--timeline {file}.txt: end its name in .pftrace or .perfetto-trace or .pb for"
            " Perfetto, .json for Chrome's trace events",
        ),
        (["--memory-map", file], f"--memory-map {file}: end its name in .svg for a picture"),
        (["--profile-every", "1ms"], "--profile-every: say where to, with --profile FILE"),
        (
            ["--profile", "-", "--profile-every", "0ms"],
            "--profile-every 0ms: give a time from 1us to 1000ms, as in 500us or 10ms",
        ),
        (
            ["--profile", "-", "--gdb", f"unix:{tmp_path}/s"],
            "--profile: not with --gdb, where a guest may go back in time",
        ),
        (["--timeline", file, "--log", file], f"--timeline {file}: the same file as --log {file}"),
    ):
        result = xenemu_run(kernel, *options)
        assert (result.returncode, result.stderr) == (EXIT_IMAGE, f"xenemu: {why}\n".encode())
        assert not file.exists()


def test_a_file_with_something_in_it_stays(kernel: str, tmp_path: Path, xenemu_run: Run) -> None:
    file = tmp_path / "t.pftrace"
    file.write_text("mine")
    assert xenemu_run(kernel, "--timeline", file).returncode == EXIT_IMAGE
    assert file.read_text() == "mine"
