"""Why an image cannot be booted, and what each of Xen's entries asks of an image.

In Xen: common/libelf/libelf-dominfo.c (elf_xen_note_check), tools/libs/guest/xg_dom_elfloader.c
"""

from __future__ import annotations

from typing import Final

from xenemu.image import Feature, Image


class Unbootable(Exception):
    """Why an image cannot be booted by an entry: one sentence."""


class NoNote(Unbootable):
    """A note is missing, which Xen may merely not find."""


def check_has_notes(image: Image) -> None:
    if image.notes.source is not None:
        return
    if image.program:
        raise Unbootable("this is a PE program, which EFI starts, and has no Xen notes")
    if image.is_program:
        raise Unbootable(
            f"this is an ordinary program ({image.type}, run by {image.interpreter}),"
            " not a kernel, and has no Xen notes"
        )
    hint = " (Linux has them with CONFIG_XEN_PV or CONFIG_PVH)" if image.format == "bzImage" else ""
    raise NoNote(f"there are no Xen notes{hint}")


def check_features(image: Image, absent: set[Feature]) -> None:
    if image.notes.unknown_required:
        name = image.notes.unknown_required[0]
        raise Unbootable(f"FEATURES requires {name!r}, which Xen does not know")
    if Feature.dom0 in image.notes.required:
        raise Unbootable("FEATURES requires dom0, and this is an unprivileged domain")
    # As Xen's own builder does (pv/dom0_build.c). DIVERGES: Xen's tools let a kernel that needs
    # supervisor_mode_kernel start, and fail.
    for feature in sorted(absent & image.notes.required):
        raise Unbootable(
            f"FEATURES requires {feature.name}, which a PV domain does not have{_WHY_NOT[feature]}"
        )


_WHY_NOT: Final = {
    Feature.auto_translated_physmap: ": its page tables hold machine addresses",
    Feature.supervisor_mode_kernel: ": its kernel runs in ring 3, or ring 1 if it has 32 bits",
}
