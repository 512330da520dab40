"""EFI's binary interface: status codes, identifiers, and the order of the services in tables.

UEFI specification 2.10: appendix D (status codes), sections 4.3 to 4.5 (tables), 7.2 (memory).
"""

from __future__ import annotations

import uuid
from enum import IntEnum
from typing import Final

REVISION: Final = 2 << 16 | 100  # 2.10
VENDOR: Final = "xenemu"
FIRMWARE_REVISION: Final = 1 << 16

SYSTEM_SIGNATURE: Final = int.from_bytes(b"IBI SYST", "little")
BOOT_SIGNATURE: Final = int.from_bytes(b"BOOTSERV", "little")
RUNTIME_SIGNATURE: Final = int.from_bytes(b"RUNTSERV", "little")


class Status(IntEnum):
    """EFI_STATUS without its highest bit, which all but SUCCESS have."""

    SUCCESS = 0
    LOAD_ERROR = 1
    INVALID_PARAMETER = 2
    UNSUPPORTED = 3
    BAD_BUFFER_SIZE = 4
    BUFFER_TOO_SMALL = 5
    NOT_READY = 6
    DEVICE_ERROR = 7
    WRITE_PROTECTED = 8
    OUT_OF_RESOURCES = 9
    NO_MEDIA = 12
    MEDIA_CHANGED = 13
    NOT_FOUND = 14
    ACCESS_DENIED = 15
    ALREADY_STARTED = 20
    ABORTED = 21
    SECURITY_VIOLATION = 26


class MemoryType(IntEnum):
    """EFI_MEMORY_TYPE."""

    RESERVED = 0
    LOADER_CODE = 1
    LOADER_DATA = 2
    BOOT_SERVICES_CODE = 3
    BOOT_SERVICES_DATA = 4
    RUNTIME_SERVICES_CODE = 5
    RUNTIME_SERVICES_DATA = 6
    CONVENTIONAL = 7
    UNUSABLE = 8
    ACPI_RECLAIM = 9
    ACPI_NVS = 10
    MMIO = 11
    MMIO_PORT = 12
    PAL_CODE = 13
    PERSISTENT = 14
    UNACCEPTED = 15


FIRST_OWN_TYPE: Final = 0x70000000  # memory types from here on are OEMs' and loaders'
MEMORY_WB: Final = 1 << 3
MEMORY_RUNTIME: Final = 1 << 63
MEMORY_DESCRIPTOR_VERSION: Final = 1
# More than EFI_MEMORY_DESCRIPTOR has, as in other firmware: who ignores the size is found out.
MEMORY_DESCRIPTOR_SIZE: Final = 48


def guid(text: str) -> bytes:
    """A GUID as it is in memory."""
    return uuid.UUID(text).bytes_le


LOADED_IMAGE: Final = guid("5b1b31a1-9562-11d2-8e3f-00a0c969723b")
DEVICE_PATH: Final = guid("09576e91-6d3f-11d2-8e39-00a0c969723b")
LOAD_FILE2: Final = guid("4006c0c1-fcb3-403e-996d-4a6c8724e06d")
TEXT_INPUT: Final = guid("387477c1-69c7-11d2-8e39-00a0c969723b")
TEXT_OUTPUT: Final = guid("387477c2-69c7-11d2-8e39-00a0c969723b")
LOADED_IMAGE_DEVICE_PATH: Final = guid("bc62157e-3e33-4fec-9920-2d3b36d750df")
SIMPLE_FILE_SYSTEM: Final = guid("964e5b22-6459-11d2-8e39-00a0c969723b")
FILE_INFO: Final = guid("09576e92-6d3f-11d2-8e39-00a0c969723b")
FILE_SYSTEM_INFO: Final = guid("09576e93-6d3f-11d2-8e39-00a0c969723b")
FILE_SYSTEM_VOLUME_LABEL: Final = guid("db47d7d3-fe81-11d3-9a35-0090273fc14d")
BLOCK_IO: Final = guid("964e5b21-6459-11d2-8e39-00a0c969723b")
RNG: Final = guid("3152bca5-eade-433d-862e-c01cdc291f44")
RNG_ALGORITHM_RAW: Final = guid("e43176d7-b6e8-4827-b784-7ffdc4b68561")
LINUX_INITRD_MEDIA: Final = guid("5568e427-68fc-4f3d-ac74-ca555231cc68")
ACPI_20_TABLE: Final = guid("8868e871-e4f1-11d3-bc22-0080c73c8881")
RT_PROPERTIES_TABLE: Final = guid("eb66918a-7eef-402a-842e-931d21c38ae9")
EXIT_BOOT_SERVICES_GROUP: Final = guid("27abf055-b1b8-4c26-8048-748f37baa2df")
VIRTUAL_ADDRESS_CHANGE_GROUP: Final = guid("13fa7698-c831-49c7-87ea-8f43fcc25196")

BOOT_SERVICES: Final = (
    *("RaiseTPL", "RestoreTPL"),
    *("AllocatePages", "FreePages", "GetMemoryMap", "AllocatePool", "FreePool"),
    *("CreateEvent", "SetTimer", "WaitForEvent", "SignalEvent", "CloseEvent", "CheckEvent"),
    *("InstallProtocolInterface", "ReinstallProtocolInterface", "UninstallProtocolInterface"),
    *("HandleProtocol", "Reserved", "RegisterProtocolNotify", "LocateHandle", "LocateDevicePath"),
    "InstallConfigurationTable",
    *("LoadImage", "StartImage", "Exit", "UnloadImage", "ExitBootServices"),
    *("GetNextMonotonicCount", "Stall", "SetWatchdogTimer"),
    *("ConnectController", "DisconnectController"),
    *("OpenProtocol", "CloseProtocol", "OpenProtocolInformation"),
    *("ProtocolsPerHandle", "LocateHandleBuffer", "LocateProtocol"),
    *("InstallMultipleProtocolInterfaces", "UninstallMultipleProtocolInterfaces"),
    *("CalculateCrc32", "CopyMem", "SetMem", "CreateEventEx"),
)
RUNTIME_SERVICES: Final = (
    *("GetTime", "SetTime", "GetWakeupTime", "SetWakeupTime"),
    *("SetVirtualAddressMap", "ConvertPointer"),
    *("GetVariable", "GetNextVariableName", "SetVariable"),
    *("GetNextHighMonotonicCount", "ResetSystem"),
    *("UpdateCapsule", "QueryCapsuleCapabilities", "QueryVariableInfo"),
)
# EFI_RT_SUPPORTED_*: the bit of a service is its place in this order.
RUNTIME_BITS: Final = RUNTIME_SERVICES

CONSOLE_IN: Final = ("ConIn.Reset", "ConIn.ReadKeyStroke")  # and then WaitForKey, an event
CONSOLE_OUT: Final = (
    *("ConOut.Reset", "ConOut.OutputString", "ConOut.TestString", "ConOut.QueryMode"),
    *("ConOut.SetMode", "ConOut.SetAttribute", "ConOut.ClearScreen"),
    *("ConOut.SetCursorPosition", "ConOut.EnableCursor"),  # and then Mode
)
LOAD_FILE2_SERVICES: Final = ("LoadFile2.LoadFile",)
RNG_SERVICES: Final = ("Rng.GetInfo", "Rng.GetRNG")
VOLUME_SERVICES: Final = ("SimpleFileSystem.OpenVolume",)
FILE_SERVICES: Final = (
    *("File.Open", "File.Close", "File.Delete", "File.Read", "File.Write"),
    *("File.GetPosition", "File.SetPosition", "File.GetInfo", "File.SetInfo", "File.Flush"),
)
BLOCK_SERVICES: Final = (
    *("BlockIo.Reset", "BlockIo.ReadBlocks", "BlockIo.WriteBlocks", "BlockIo.FlushBlocks"),
)
RETURNS: Final = ("return of the image", "return of a notification")

BOOT_STUBS: Final = (
    *BOOT_SERVICES,
    *(*CONSOLE_IN, *CONSOLE_OUT, *LOAD_FILE2_SERVICES, *RNG_SERVICES),
    *(*VOLUME_SERVICES, *FILE_SERVICES, *BLOCK_SERVICES),
    *RETURNS,
)
STUB_SIZE: Final = 16
STUB: Final = b"\x0f\x01\xc1\xc3"  # vmcall; ret
VMCALL_LENGTH: Final = 3
