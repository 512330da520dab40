"""A guest of EFI's that is a FakeCpu: its calls of services come from here."""

from __future__ import annotations

import struct

from pewriter import efi_bzimage, pe

from fakes import FakeNativeCpu
from xenemu.boot import ENTRIES
from xenemu.boot.efi import abi
from xenemu.boot.efi.abi import Status
from xenemu.boot.efi.call import ERROR_BIT
from xenemu.dom0.console import Console
from xenemu.hv.backend import attach
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.pvh.exits import PvhExits

MIB = 1 << 20
SCRATCH = 0x200000  # memory for what is passed, which nothing gives out
RUNTIME_AT = {name: 24 + 8 * n for n, name in enumerate(abi.RUNTIME_SERVICES)}
BOOT_AT = {name: 24 + 8 * n for n, name in enumerate(abi.BOOT_SERVICES)}


class EfiGuest:
    """A domain of 64 MiB as its PE program finds it, at its first instruction."""

    def __init__(self, load, program: bytes | None = None, memory: int = 64 * MIB, **config):
        image = load(efi_bzimage(program or pe()))
        self.domain = ENTRIES["efi"].build(image, DomainConfig(memory, **config))
        self.console = Console()
        attach(self.domain, [self.console])
        self.cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
        personality = ENTRIES["efi"].platform.personality
        self.current = Current(self.domain, self.domain.vcpus[0], self.cpu, personality.translate)
        ENTRIES["efi"].start(self.current)
        self.exits = PvhExits(self.current)
        self.image, self.system = self.cpu.regs[Reg.RCX], self.cpu.regs[Reg.RDX]
        self.stack = self.cpu.regs[Reg.RSP] - 0x1000
        self.boot, self.runtime = self.word(self.system + 96), self.word(self.system + 88)
        self.efi = self.domain.arch.firmware.firmware

    def word(self, at: int, size: int = 8) -> int:
        return self.current.read_uint(at, size)

    def put(self, at: int, *words: int) -> int:
        """Write words of 64 bits, and return where."""
        self.current.write(at, struct.pack(f"<{len(words)}Q", *words))
        return at

    def text(self, at: int, text: str) -> int:
        self.current.write(at, (text + "\0").encode("utf-16-le"))
        return at

    def guid(self, at: int, guid: bytes) -> int:
        self.current.write(at, guid)
        return at

    def where(self, name: str) -> int:
        """The address of a service's stub, by the table that it is in."""
        if name in RUNTIME_AT:
            return self.word(self.runtime + RUNTIME_AT[name])
        return self.word(self.boot + BOOT_AT[name])

    def jump(self, stub: int, *args: int) -> int:
        """Call the stub at an address; what RAX is then."""
        self.prepare(stub, *args)
        self.exits.vmcall()
        return self.cpu.regs[Reg.RAX]

    def prepare(self, stub: int, *args: int) -> None:
        """Have a CPU that has just done the VMCALL of a stub, called with these arguments."""
        for register, value in zip((Reg.RCX, Reg.RDX, Reg.R8, Reg.R9), args, strict=False):
            self.cpu.regs[register] = value & (1 << 64) - 1
        self.cpu.regs[Reg.RSP] = self.stack
        self.put(self.stack, 0x1234, 0, 0, 0, 0, *(arg & (1 << 64) - 1 for arg in args[4:]))
        assert self.current.read(stub, 4) == abi.STUB
        self.cpu.rip = stub + abi.VMCALL_LENGTH

    def call(self, name: str, *args: int) -> Status:
        """Call a service of a table; its status."""
        return status(self.jump(self.where(name), *args))

    def method(self, protocol: int, index: int, *args: int) -> Status:
        """Call a function of a protocol, whose first argument is the protocol."""
        return status(self.jump(self.word(protocol + 8 * index), protocol, *args))

    def find(self, protocol: bytes) -> int:
        """A protocol's interface."""
        assert self.call("LocateProtocol", self.guid(SCRATCH, protocol), 0, SCRATCH + 16) == 0
        return self.word(SCRATCH + 16)

    def map_key(self) -> int:
        """The key of the memory map, by reading it."""
        at = SCRATCH + 0x1000
        self.put(at, 0x10000)
        assert self.call("GetMemoryMap", at, at + 64, at + 8, at + 16, at + 24) == 0
        return self.word(at + 8)

    def leave_boot_services(self) -> None:
        assert self.call("ExitBootServices", self.image, self.map_key()) == 0


def status(rax: int) -> Status:
    """A status as EFI has it: all but success have the highest bit."""
    assert bool(rax & ERROR_BIT) == bool(rax), hex(rax)
    return Status(rax & ~ERROR_BIT)
