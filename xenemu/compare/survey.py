"""Boot a kernel by one entry, and note what it runs and what it asks of the platform."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final

import capstone

from xenemu.compare.boots import Boot
from xenemu.coverage import Coverage, missing
from xenemu.decode import call_name
from xenemu.hv.building import DomainConfig
from xenemu.hv.calls import CallRecord
from xenemu.hv.current import Current, Observer
from xenemu.hv.dispatch import Hypercall
from xenemu.hv.observe import Watch
from xenemu.hv.prices import Exit
from xenemu.image import Image
from xenemu.kaslr import as_mapped
from xenemu.linux import Linux
from xenemu.machine import Machine
from xenemu.outcome import Outcome
from xenemu.peek import Code, Pages, kernel_tables
from xenemu.x86 import msr

HYPERCALLS: Final = "Hypercalls"
KINDS: Final = {
    Exit.CPUID: "CPUID leaves",
    Exit.RDMSR: "MSRs read",
    Exit.WRMSR: "MSRs written",
    Exit.IN: "Ports read",
    Exit.OUT: "Ports written",
}
PRIVILEGED: Final = "Privileged instructions, by the places in the code that ran"
# Those that ring 0 may execute only, or that show or change what a hypervisor has to know.
INSTRUCTIONS: Final = frozenset(
    "cli sti hlt lgdt lidt lldt ltr lmsw clts invlpg invpcid invd wbinvd rdmsr wrmsr in out insb "
    "insd outsb outsd rdpmc rdtsc rdtscp cpuid swapgs iret iretd iretq sysret sysretq sysexit "
    "monitor mwait xsetbv sgdt sidt sldt str smsw popf popfq pushf pushfq vmcall vmmcall "
    "wrfsbase wrgsbase rdfsbase rdgsbase lret retf".split()
)
SUBLEAVES: Final = frozenset((4, 7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x40000003))
SEARCHED: Final = range(0x40000100, 0x40010000)
X2APIC: Final = range(0x800, 0x900)
MEMORY_MAP: Final = re.compile(r"(?:BIOS|Xen|e820|PVH|user)[-\w]*: (\[mem .*)")


class Questions(Observer):
    """Counts what a guest asks of the hypervisor and of its platform."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in (HYPERCALLS, *KINDS.values())
        }

    def call_begins(self, current: Current, row: Hypercall | None, record: CallRecord) -> None:
        self.counts[HYPERCALLS][call_name(row, record)] += 1

    def asked(self, current: Current, what: Exit, number: int, index: int) -> None:
        said = f"{number:#x}"
        if what is Exit.CPUID:
            said = _leaf(number, index)
        elif what in (Exit.RDMSR, Exit.WRMSR):
            x2apic = f"x2APIC register {number - X2APIC.start:#x}" if number in X2APIC else said
            said = _msr_names().get(number, x2apic)
        self.counts[KINDS[what]][said] += 1


def _leaf(leaf: int, subleaf: int) -> str:
    if leaf in SEARCHED and not leaf & 0xFF:
        return "0x4000..00, in search of a hypervisor"
    return f"{leaf:#010x}" + (f", {subleaf:#x}" if leaf in SUBLEAVES else "")


@cache
def _msr_names() -> dict[int, str]:
    return {value: name for name, value in vars(msr).items() if isinstance(value, int)}


def boot(
    name: str, image: Image, config: DomainConfig, mode: str, run: Callable[[Machine], Outcome]
) -> Boot:
    """Have `run` run one boot to its end; ImageError, FitError or UsageError if there is none."""
    machine = Machine(image, config, mode)
    machine.show_ports()
    log, questions = machine.record_blocks(), Questions()
    watch = Watch.of(machine.current)
    watch.add(questions)
    outcome = run(machine)
    watch.remove(questions)
    current = machine.current
    image = as_mapped(current, image)
    linux = Linux(current, image, Pages(current, kernel_tables(current, image)))
    coverage = Coverage.of(log.blocks(), image, Code(image, current))
    log.close()
    asked = {**questions.counts, PRIVILEGED: privileged(coverage.ranges, image)}
    memory = tuple(_memory_map(line.text for line in linux.log()))
    end = "; ".join(filter(None, (outcome.reason, missing(log))))
    return Boot(name, end, machine.engine.instructions, coverage, asked, memory)


def privileged(ranges: Iterable[range], image: Image) -> Counter[str]:
    """Count the places of privileged and sensitive instructions in code that ran, as built.

    The kernel may since have replaced one by another, as paravirtual kernels do.
    """
    mode = capstone.CS_MODE_64 if image.elf_class == 64 else capstone.CS_MODE_32
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    found: Counter[str] = Counter()
    for part in ranges:
        for segment in image.segments:
            if part.start - segment.vaddr in range(len(segment.data)):
                code = bytes(segment.data[part.start - segment.vaddr :][: len(part)])
                for _, _, mnemonic, operands in decoder.disasm_lite(code, part.start):
                    if mnemonic in INSTRUCTIONS:
                        found[mnemonic] += 1
                    elif mnemonic == "mov" and (register := _SYSTEM.search(operands)):
                        found[f"mov {register[0]}"] += 1
    return found


_SYSTEM: Final = re.compile(r"\b[cd]r\d+\b")


def _memory_map(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if found := MEMORY_MAP.search(line):
            yield found[1]


def init_functions(image: Image) -> list[str]:
    """The names of a Linux kernel's init code, in the order of their addresses."""
    symbols = image.symbols
    start, end = symbols.address("_sinittext"), symbols.address("_einittext")
    if start is None or end is None:
        return []
    own = [name for vaddr, name, code in symbols.items() if code and start <= vaddr < end]
    return [name for name in dict.fromkeys(own) if name != "_sinittext"]
