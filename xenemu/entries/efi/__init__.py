"""A small EFI on the PVH machine: its memory, its services, and the entries that start with it.

Each service is a stub of a few bytes in the guest, which makes an exit to here. UEFI specification
2.10.
"""

from xenemu.entries.efi.entry import ENTRIES

__all__ = ["ENTRIES"]
