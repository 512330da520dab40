"""A guest of EFI's that is a FakeCpu: its calls of services come from here."""

from __future__ import annotations

import struct

from pewriter import I386, X86_64, efi_bzimage, pe

from fakes import FakeNativeCpu
from xenemu.dom0.console import Console
from xenemu.entries import ENTRIES
from xenemu.entries.efi import abi
from xenemu.entries.efi.abi import BOOT_STUBS, RUNTIME_SERVICES, STUB_SIZE, Status
from xenemu.entries.efi.call import SERVICES
from xenemu.entries.efi.width import X64, Width
from xenemu.hv.backend import attach
from xenemu.hv.building import DomainConfig
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.pvh.exits import PvhExits

MIB = 1 << 20
SCRATCH = 0x200000  # memory for what is passed, which nothing gives out
SYSTEM_TABLE = "NINNNNNNNNNN"  # after the header


class EfiGuest:
    """A domain of 64 MiB as its PE program finds it, at its first instruction."""

    def __init__(
        self,
        load,
        program: bytes | None = None,
        memory: int = 64 * MIB,
        width: Width = X64,
        **config,
    ):
        self.width = width
        machine = X86_64 if width is X64 else I386
        image = load(efi_bzimage(program or pe(machine=machine)))
        self.domain = ENTRIES["efi"].build(image, DomainConfig(memory, **config))
        self.console = Console()
        attach(self.domain, [self.console])
        self.cpu = FakeNativeCpu(regs=[0xDEAD] * 16)
        personality = ENTRIES["efi"].platform.personality
        self.current = Current(self.domain, self.domain.vcpus[0], self.cpu, personality.translate)
        ENTRIES["efi"].start(self.current)
        self.exits = PvhExits(self.current)
        rsp, regs = self.cpu.regs[Reg.RSP], self.cpu.regs
        passed = (regs[Reg.RCX], regs[Reg.RDX])
        if width is not X64:
            passed = (self.native(rsp + 4), self.native(rsp + 8))
        self.image, self.system = passed
        self.stack = rsp - 0x1000
        data = self.current.read(self.system + 24, width.length(SYSTEM_TABLE))
        fields = width.unpack(SYSTEM_TABLE, data)
        self.con_in, self.con_out, self.runtime, self.boot = (fields[n] for n in (3, 5, 8, 9))
        self.efi = self.domain.arch.firmware.firmware

    def word(self, at: int, size: int = 8) -> int:
        return self.current.read_uint(at, size)

    def native(self, at: int) -> int:
        """A UINTN, a handle or a pointer."""
        return self.word(at, self.width.word)

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
        late = name in abi.RUNTIME_SERVICES
        names = abi.RUNTIME_SERVICES if late else abi.BOOT_SERVICES
        table = self.runtime if late else self.boot
        return self.native(table + 24 + self.width.word * names.index(name))

    def jump(self, stub: int, *args: int) -> int:
        """Call the stub at an address; what RAX is then."""
        self.prepare(stub, *args)
        self.exits.vmcall()
        return self.cpu.regs[Reg.RAX]

    def prepare(self, stub: int, *args: int) -> None:
        """Have a CPU that has just done the VMCALL of a stub, called with these arguments."""
        width = self.width
        words = list(self.words(stub, args))
        for register in width.registers:
            self.cpu.regs[register] = words.pop(0) if words else 0
        self.cpu.regs[Reg.RSP] = self.stack
        shadow = bytes(width.shadow)
        self.current.write(self.stack, width.pointers(0x1234) + shadow + width.pointers(*words))
        assert self.current.read(stub, 4) == abi.STUB
        self.cpu.rip = stub + abi.VMCALL_LENGTH

    def words(self, stub: int, args: tuple[int, ...]):
        """Arguments as the caller passes them: one of 64 bits may be two words."""
        index, late = (stub & 0xFFF) // STUB_SIZE, stub & ~0xFFF == self.efi.runtime_code
        names = RUNTIME_SERVICES if late else BOOT_STUBS
        declared = SERVICES.get(names[index])
        types = (declared.types if declared else "").ljust(len(args), "N")
        for letter, value in zip(types, args, strict=False):
            for n in range(max(1, self.width.size(letter) // self.width.word)):
                yield value >> self.width.bits * n & self.width.mask

    def call(self, name: str, *args: int) -> Status:
        """Call a service of a table; its status."""
        return self.status(self.jump(self.where(name), *args))

    def method(self, protocol: int, index: int, *args: int) -> Status:
        """Call a function of a protocol, whose first argument is the protocol."""
        function = self.native(protocol + self.width.word * index)
        return self.status(self.jump(function, protocol, *args))

    def find(self, protocol: bytes) -> int:
        """A protocol's interface."""
        assert self.call("LocateProtocol", self.guid(SCRATCH, protocol), 0, SCRATCH + 16) == 0
        return self.native(SCRATCH + 16)

    def map_key(self) -> int:
        """The key of the memory map, by reading it."""
        at = SCRATCH + 0x1000
        self.put(at, 0x10000)
        assert self.call("GetMemoryMap", at, at + 64, at + 8, at + 16, at + 24) == 0
        return self.native(at + 8)

    def leave_boot_services(self) -> None:
        assert self.call("ExitBootServices", self.image, self.map_key()) == 0

    def status(self, rax: int) -> Status:
        """A status as EFI has it: all but success have the highest bit."""
        error = self.width.error
        assert bool(rax & error) == bool(rax), hex(rax)
        return Status(rax & ~error)
