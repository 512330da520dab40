"""What `--entry` can ask for, and which file of this package has each.

A file is imported when one of its entries is asked for. So a run does not pay for an EFI that it
has no use for.
"""

from __future__ import annotations

from typing import Final

AUTO: Final = "auto"
PREFERRED: Final = ("pvh", "pv")  # what auto takes: the first of them that the kernel offers
DRAFT: Final = "hvm-draft-a"

FILES: Final = {
    "pv": "pv",
    "pvh": "pvh",
    "efi": "efi",
    "efi32": "efi",
    "efi-handover": "efi",
    "efi-handover32": "efi",
    DRAFT: "hvm_draft",
    "linux32": "linux",
    "linux64": "linux",
}
MODES: Final = (AUTO, *FILES)
