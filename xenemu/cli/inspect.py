"""`xenemu inspect`: what a kernel image is, what it says of itself, and how it can boot.

With `--json`, addresses and bit masks are hexadecimal strings, because JSON's numbers have 53 bits.
Sizes are numbers. If xenemu cannot decode a note, its value is its bytes in hexadecimal.
"""

from __future__ import annotations

import dataclasses
import json as json_codec
import shlex
from typing import Annotated, Any

import typer

from xenemu import entries, image
from xenemu.cli.guest_options import DraftNotes, Kernel
from xenemu.errors import ImageError
from xenemu.image import Image, Note
from xenemu.image.notes import as_draft
from xenemu.image.notes import ignored as why_ignored
from xenemu.options import parse_draft_notes
from xenemu.outcome import EXIT_IMAGE
from xenemu.xl import Config, is_config, read_config


def inspect(
    kernel: Kernel,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    draft_notes: DraftNotes = None,
) -> None:
    """Show a kernel's format, its Xen notes, and the entries it can boot by.

    Of a guest's configuration, show what it means to xenemu run, and the same of its kernel.

    Exit codes: 0 if it can boot by some entry, 7 if by none, or if it is no kernel.
    """
    types = None if draft_notes is None else parse_draft_notes("--draft-notes", draft_notes)
    config = read_config(kernel) if is_config(kernel) else None
    try:
        found = image.load(config.kernel if config else kernel)
    except ImageError as error:
        typer.echo(f"xenemu: {error}", err=True)
        raise typer.Exit(EXIT_IMAGE) from None
    if types is not None:
        found = dataclasses.replace(found, draft_notes=types)
    report = describe(found)
    if config:
        report = {"config": _config(config)} | report
    typer.echo(json_codec.dumps(report, indent=2) if json else _text(report))
    if not any(mode["bootable"] for mode in report["modes"].values()):
        raise typer.Exit(EXIT_IMAGE)


def describe(found: Image) -> dict[str, Any]:
    """Everything that `inspect` says of an image, as JSON has it."""
    return {
        "path": found.path,
        "format": found.format,
        "payload": _payload(found),
        "class": found.elf_class,
        "machine": found.machine,
        "type": found.type,
        "interpreter": found.interpreter,
        "program": found.is_program,
        "entry": hex(found.entry),
        "segments": [
            {
                "paddr": hex(segment.paddr),
                "vaddr": hex(segment.vaddr),
                "filesz": len(segment.data),
                "memsz": segment.memsz,
            }
            for segment in found.segments
        ],
        "bsd_symbols": _bsd_symbols(found),
        "notes_source": found.notes.source,
        "notes": [
            _note(note, _ignored(note, found))
            for note in (as_draft(note, found.draft_notes) for note in found.notes.raw)
        ],
        "lost_notes": _lost_notes(found),
        "features": {
            "supported": [feature.name for feature in sorted(found.notes.supported)],
            "required": [feature.name for feature in sorted(found.notes.required)],
        },
        "modes": _modes(found),
    }


def _config(config: Config) -> dict[str, Any]:
    return {
        "path": config.file,
        "command": ["xenemu", "run", str(config.kernel), *config.arguments({})],
        "notes": [{"line": note.line, "text": note.text} for note in config.notes],
    }


def _bsd_symbols(found: Image) -> dict[str, Any] | None:
    symbols = found.bsd_symbols
    return {"start": hex(symbols.start), "end": hex(symbols.end)} if symbols else None


def _payload(found: Image) -> dict[str, Any] | None:
    if found.payload is None:
        return None
    payload = dataclasses.asdict(found.payload)
    if found.payload.protocol:
        major, minor = found.payload.protocol
        payload["protocol"] = f"{major}.{minor:02}"
    return payload


def _note(note: Note, ignored: str | None) -> dict[str, Any]:
    return {
        "owner": note.owner,
        "type": note.type,
        "name": note.name,
        "size": note.size,
        "value": note.words,
        "ignored": ignored,
    }


def _ignored(note: Note, found: Image) -> str | None:
    """Why a note changes nothing for this image; None if it does."""
    if note.is_xen and note.name == "BSD_SYMTAB" and not found.bsd_symbols:
        if not found.notes.bsd_symtab:
            return "only 'yes' asks for symbols"
        return "the ELF has no symbol table, or none with strings"
    return why_ignored(note, found.machine)


def _lost_notes(found: Image) -> dict[str, Any] | None:
    lost = found.notes.lost
    if lost is None:
        return None
    return {
        "notes": [_note(note, None) for note in lost.notes],
        "astray": None if lost.astray is None else hex(lost.astray),
    }


def _modes(found: Image) -> dict[str, Any]:
    modes: dict[str, Any] = {}
    for name, verdict in entries.verdicts(found).items():
        modes[name] = {"bootable": verdict.bootable, "reason": verdict.reason}
        if verdict.where:
            modes[name] |= {key: hex(at) for key, at in verdict.where._asdict().items()}
    return modes


def _text(report: dict[str, Any]) -> str:
    lines = _config_lines(report) if "config" in report else []
    lines += [f"File      {report['path']}", f"Format    {_format(report)}"]
    if payload := report["payload"]:
        lines.append(
            f"Payload   {payload['compression']}, {payload['compressed_size']} bytes,"
            f" {payload['size']} when unpacked"
        )
        if payload["kernel_version"]:
            lines.append(f"Version   {payload['kernel_version']}")
    kind = "PE" if report["format"] == "PE" else "ELF"
    lines.append(
        f"{kind:<10}{report['class']}-bit {report['machine']}, {report['type']},"
        f" entry {report['entry']}"
    )
    if report["program"]:
        lines.append(f"          an ordinary program, run by {report['interpreter']}")
    return "\n".join([*lines, *_segment_lines(report), *_note_lines(report), *_mode_lines(report)])


def _config_lines(report: dict[str, Any]) -> list[str]:
    config = report["config"]
    lines = [f"Guest     {config['path']}", f"Means     {shlex.join(config['command'])}"]
    lines += [f"Line {note['line']:<5}{note['text']}" for note in config["notes"]]
    return [*lines, ""]


def _format(report: dict[str, Any]) -> str:
    if report["format"] == "bzImage":
        return f"bzImage, boot protocol {report['payload']['protocol']}"
    form: str = report["format"]
    return f"{form} in {report['payload']['compression']}" if report["payload"] else form


def _segment_lines(report: dict[str, Any]) -> list[str]:
    lines = ["", "Segments", f"  {'paddr':<18}  {'vaddr':<18}  {'in file':>10}  {'in memory':>10}"]
    for segment in report["segments"]:
        lines.append(
            f"  {segment['paddr']:<18}  {segment['vaddr']:<18}  {segment['filesz']:>#10x}"
            f"  {segment['memsz']:>#10x}"
        )
    if symbols := report["bsd_symbols"]:
        lines.append(f"  {symbols['start']} to {symbols['end']}: symbols, for BSD_SYMTAB")
    return lines


def _note_lines(report: dict[str, Any]) -> list[str]:
    source = report["notes_source"]
    lines = ["", f"Notes (Xen's are from {source})" if source else "Notes (none of Xen's)"]
    lines += [_note_line(note, source) for note in report["notes"]]
    for kind in ("supported", "required"):
        if names := report["features"][kind]:
            lines.append(f"  features {kind + ':':<11} {' '.join(names)}")
    return lines + _lost_note_lines(report)


def _lost_note_lines(report: dict[str, Any]) -> list[str]:
    lost = report["lost_notes"]
    if lost is None:
        return []
    how = f"takes what is at {lost['astray']} for a note" if lost["astray"] else "skips them"
    return [
        "",
        "Notes that Xen does not find",
        *(_note_line(note, None) for note in lost["notes"]),
        f"  Xen steps by 4 bytes, whatever the alignment of the notes, and {how}:",
        "  give its notes a segment of their own, or leave out .note.gnu.property.",
    ]


def _note_line(note: dict[str, Any], source: str | None) -> str:
    name = note["name"] if note["owner"] in ("Xen", source) else f"{note['owner']} {note['name']}"
    value = note["value"]
    if isinstance(value, list):
        value = " ".join("/".join(word) if isinstance(word, list) else word for word in value)
    because = f"  (ignored: {note['ignored']})" if note["ignored"] else ""
    return f"  {name:<20} {value}{because}"


def _mode_lines(report: dict[str, Any]) -> list[str]:
    lines, width = ["", "Entries"], max(map(len, report["modes"])) + 2
    for name, mode in report["modes"].items():
        verdict = (
            f"yes: {mode['start']} to {mode['end']}, entry {mode['entry']}"
            if mode["bootable"]
            else f"no: {mode['reason']}"
        )
        lines.append(f"  {name:<{width}}{verdict}")
    return lines
