"""The monitor commands: what a person asks of the hypervisor, past gdb."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from xenemu.errors import UsageError, XenemuError, XenError, meant
from xenemu.gdb import objects, views
from xenemu.gdb.breaks import Breaks
from xenemu.gdb.files import Files
from xenemu.gdb.history import Place
from xenemu.gdb.places import Places
from xenemu.gdb.target import Refused, Target, pc_of
from xenemu.hv.current import Current
from xenemu.kernel import Kernel
from xenemu.linux import MAX_LINES
from xenemu.records import dataclass
from xenemu.report import call_lines, walk_lines
from xenemu.trace import KINDS, Tracer

CALLS: Final = 16
INSTRUCTIONS: Final = 8
PLACE: Final = re.compile(
    r"(?:\$?(?P<pc>pc|rip|eip)|(?P<name>[A-Za-z_.]\w*))(?:\+(?P<offset>\w+))?"
)


@dataclass(frozen=True)
class Command:
    """A command, for `help`: its arguments, and what it does."""

    usage: str
    help: str


COMMANDS: Final = {
    "help": Command("[COMMAND]", "this list, or a line of it"),
    "info": Command("domain|vcpu|mem|notes", "what Xen knows of the guest; of each vcpu"),
    "when": Command("", "how many instructions have run, and the virtual time"),
    "checkpoint": Command("", "mark this place, to come back to it"),
    "checkpoints": Command("", "the marked places, and how far back the guest can go"),
    "goto": Command("COUNT|TIME|#N|off", "where `continue` goes: so far, or to a checkpoint"),
    "vcpu": Command("[N]", "which vcpu the commands are about, until the next stop"),
    "hypercalls": Command("last [N]", "the last hypercalls, with results"),
    "walk": Command("ADDR", "the page tables' entries on the way to ADDR"),
    "gva2gpa": Command("ADDR", "where ADDR is in the guest and the machine"),
    "events": Command("", "the event channels that are not closed"),
    "symbols": Command("[NAME|ADDR]", "what is there; how to keep them"),
    "modules": Command("", "the kernel's modules that are loaded; how to name them"),
    "ps": Command("", "the kernel's tasks; > marks those that the vcpus run"),
    "print": Command(
        "NAME|TYPE ADDR", "what the kernel has there, by its types; and .MEMBER of it"
    ),
    "lsmod": Command("", "the kernel's modules, as lsmod shows them"),
    "dmesg": Command("[N]", "the kernel's log, or its last N lines"),
    "disas": Command("[ADDR [N]]", "code as the CPU reads it now"),
    "kaslr": Command("", "how far the kernel is from where it was linked"),
    "arch": Command("auto|file", "gdb's architecture: the CPU's mode, or the file's"),
    "trace": Command(f"on [{'|'.join(KINDS)}]...|off", "show what the guest does"),
    "snapshot": Command("", "keep the guest in the next file of --snapshot"),
    "dump": Command("", "write the guest's core into the next file of --core"),
    "break-on": Command("hypercall NAME|fault N|event PORT|off", "hold the guest there"),
}


class Monitor:
    """Runs one command line at a time. It is about the vcpu that was held, or another by choice.

    gdb does not say which of its threads a person has selected when he gives a monitor command.

    `say` shows the person a text at once. `request` holds the guest, and gives the reason.
    """

    def __init__(
        self,
        target: Target,
        files: Files,
        places: Places,
        say: Callable[[str], None],
        request: Callable[[str], None],
    ) -> None:
        self._target, self._files, self._places = target, files, places
        self._code = target.code
        self._breaks = Breaks(target.machine, request, target.code.format)
        self._say = say
        self._tracer: Tracer | None = None
        self._chosen: int | None = None  # a thread
        self._run = {
            "help": self._help,
            "info": self._info,
            "when": self._when,
            "checkpoint": self._checkpoint,
            "checkpoints": self._checkpoints,
            "goto": self._goto,
            "vcpu": self._vcpu,
            "hypercalls": self._calls,
            "walk": self._walk,
            "gva2gpa": self._gva2gpa,
            "events": self._events,
            "symbols": self._symbols,
            "modules": self._modules,
            "ps": self._ps,
            "print": self._print,
            "lsmod": self._lsmod,
            "dmesg": self._dmesg,
            "disas": self._disas,
            "kaslr": self._kaslr,
            "arch": self._arch,
            "trace": self._trace,
            "snapshot": self._snapshot,
            "dump": self._dump,
            "break-on": self._break_on,
        }

    def reset(self) -> None:
        """The gdb that gave commands is gone."""
        self._breaks.clear()
        self._trace(["off"])

    def stopped(self) -> None:
        """The guest is held anew: commands are about the vcpu in the CPU."""
        self._chosen = None

    def catch_again(self) -> None:
        """Hold the guest anew for the faults that were asked for."""
        self._breaks.arm()

    @property
    def _current(self) -> Current:
        """The vcpu that commands are about."""
        return self._target.current_of(self._chosen or self._target.current_thread)

    def _whose(self) -> list[str]:
        """A heading, where another vcpu could be meant."""
        if len(self._target.threads) == 1:
            return []
        return [f"of vcpu {self._current.vcpu.vcpu_id}:"]

    def run(self, line: str) -> str:
        """Run a command; what it prints, with a sentence for what cannot be."""
        words = line.split()
        if not words:
            words = ["help"]
        command = COMMANDS.get(words[0])
        if command is None:
            return _unknown(words[0]) + "\n"
        try:
            lines = self._run[words[0]](words[1:])
        except Refused as refused:
            lines = [str(refused)]
        except XenError as error:
            lines = [error.reason]
        except UsageError as error:
            lines = [str(error)]
        except (ValueError, IndexError):
            lines = [f"usage: monitor {words[0]} {command.usage}".rstrip()]
        return "".join(f"{text}\n" for text in lines)

    def _help(self, words: list[str]) -> list[str]:
        if len(words) > 1:
            raise ValueError(words)
        if words and words[0] not in COMMANDS:
            raise Refused(_unknown(words[0]))
        wanted = {name: COMMANDS[name] for name in words} or COMMANDS
        forms = {f"monitor {name} {each.usage}": each.help for name, each in wanted.items()}
        width = max(map(len, forms)) + 2
        return [form.ljust(width) + told for form, told in forms.items()]

    def _address(self, text: str) -> int:
        """A number, a symbol, or the program counter; an offset may follow."""
        found = PLACE.fullmatch(text)
        if not found or text[0].isdigit():
            return int(text, 0)
        offset = int(found["offset"] or "0", 0)
        if found["pc"]:
            return pc_of(self._current.cpu) + offset
        return self._code.find(found["name"]) + offset

    # What Xen knows.

    def _info(self, words: list[str]) -> list[str]:
        (what,) = words
        view = views.INFO.get(what)
        if view is None:
            raise ValueError(what)
        return view(self._target)

    def _when(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        return [str(Place.of(self._target.machine))]

    def _checkpoint(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        return self._places.mark()

    def _checkpoints(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        return self._places.show()

    def _goto(self, words: list[str]) -> list[str]:
        (text,) = words
        return self._places.stay() if text == "off" else self._places.go(text)

    def _vcpu(self, words: list[str]) -> list[str]:
        if words:
            (text,) = words
            thread = int(text, 0) + 1
            if thread not in self._target.threads:
                raise Refused(f"there is no vcpu {text}")
            self._chosen = thread
        return [f"the commands are about vcpu {self._current.vcpu.vcpu_id}"]

    def _calls(self, words: list[str]) -> list[str]:
        if words and words[0] == "last":
            words = words[1:]
        count = int(words[0]) if words else CALLS
        return call_lines(self._current, count) or ["none yet"]

    def _walk(self, words: list[str]) -> list[str]:
        (text,) = words
        return self._whose() + walk_lines(self._current, self._address(text))

    def _gva2gpa(self, words: list[str]) -> list[str]:
        (text,) = words
        return self._whose() + views.addresses(self._target, self._current, self._address(text))

    def _events(self, words: list[str]) -> list[str]:
        return views.events(self._target)

    # The kernel's code.

    def _symbols(self, words: list[str]) -> list[str]:
        if words:
            vaddr = self._address(words[0])
            return [f"{vaddr:#x} is {self._code.format(vaddr)}"]
        return [
            f"{len(self._code.symbols)} symbols; gdb reads them from {self._files.path}",
            f"to keep them: remote get {self._files.path} FILE",
        ]

    def _modules(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        modules = self._target.modules
        if not modules:
            return ["none, or a kernel that does not say where: Linux does by its BTF"]
        return [
            *(f"{module.name:<24} {module.parts[0].start:#x}" for module in modules),
            f"for gdb to know their names: add-symbol-file target:{self._files.modules_path}",
        ]

    # What a Linux says of itself.

    @property
    def _kernel(self) -> Kernel:
        return Kernel(self._current, self._target.image)

    def _ps(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        return objects.tasks(self._kernel)

    def _print(self, words: list[str]) -> list[str]:
        if not words:
            raise ValueError(words)
        return objects.show(self._kernel, " ".join(words), self._address)

    def _lsmod(self, words: list[str]) -> list[str]:
        if words:
            raise ValueError(words)
        return objects.modules(self._kernel)

    def _dmesg(self, words: list[str]) -> list[str]:
        count = int(words[0]) if words else MAX_LINES
        if count <= 0:
            raise ValueError(words)
        return [str(line) for line in self._kernel.log()[-count:]]

    def _disas(self, words: list[str]) -> list[str]:
        vaddr = self._address(words[0] if words else "$pc")
        count = int(words[1], 0) if len(words) > 1 else INSTRUCTIONS
        return self._whose() + views.disassemble(self._target, self._current, vaddr, count)

    def _kaslr(self, words: list[str]) -> list[str]:
        found = views.find_offset(self._target, self._current)
        if found is None:
            return ["the kernel is not mapped yet, or not where any KASLR would put it"]
        if found == 0:
            return ["offset 0: the kernel runs where it was linked"]
        return [
            f"offset {found:#x}",
            f"for gdb: symbol-file -o {found:#x} target:{self._files.path}",
        ]

    def _arch(self, words: list[str]) -> list[str]:
        (what,) = words
        if what not in ("auto", "file"):
            raise ValueError(what)
        self._target.follows_mode = what == "auto"
        self._files.prepare_all()
        return [f"the CPU runs {self._target.code_bits}-bit code; the next stop tells gdb"]

    def _snapshot(self, words: list[str]) -> list[str]:
        return self._into_file(words, self._target.keep, "--snapshot")

    def _dump(self, words: list[str]) -> list[str]:
        return self._into_file(words, self._target.dump, "--core")

    def _into_file(
        self, words: list[str], write: Callable[[], str] | None, option: str
    ) -> list[str]:
        if words:
            raise ValueError(words)
        if write is None:
            raise Refused(f"there is no file for it: begin the run with {option} FILE")
        try:
            return [write()]
        except XenemuError as error:
            raise Refused(str(error)) from None

    # What the guest does.

    def _trace(self, words: list[str]) -> list[str]:
        what, *kinds = words
        if what not in ("on", "off") or not set(kinds) <= set(KINDS):
            raise ValueError(what)
        if self._tracer is not None:
            self._tracer.stop()
            self._tracer = None
        if what == "off":
            return []
        self._tracer = Tracer(self._code, self._say, kinds or KINDS)
        self._tracer.start(self._target.machine.current)
        return ["what the guest does is shown while it runs"]

    def _break_on(self, words: list[str]) -> list[str]:
        match words:
            case []:
                pass
            case ["off"]:
                self._breaks.clear()
            case ["hypercall", name]:
                self._breaks.on_hypercall(name)
            case ["fault", text]:
                self._breaks.on_fault(text)
            case ["event", text]:
                self._breaks.on_event(text)
            case _:
                raise ValueError(words)
        return self._breaks.describe()


def _unknown(name: str) -> str:
    return f"there is no monitor command {name!r}; try: monitor help{meant(name, COMMANDS)}"
