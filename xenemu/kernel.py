"""What a running Linux says of itself by its own types (BTF), without debug information.

Its tasks, its modules, and any object whose address or name a person knows. All of it is read from
the guest's memory, which stands still meanwhile, may not be set up yet, and may be damaged. So each
list has a limit, and a list that is broken says where. For all that goes deeper there is a core
dump, and drgn.

In Linux: include/linux/sched.h, include/linux/module.h, include/linux/list.h
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Final, Generic, TypeVar

from xenemu.errors import NoSuchName, Unmapped, UsageError, XenError, meant
from xenemu.hv.current import Current
from xenemu.image import Image
from xenemu.image.btf import Btf
from xenemu.image.orc import Read
from xenemu.image.values import Value, told
from xenemu.kaslr import as_mapped
from xenemu.linux import Linux, LogLine
from xenemu.peek import Pages, kernel_tables, tables
from xenemu.records import dataclass

MAX_TASKS: Final = 1 << 15
MAX_MODULES: Final = 1 << 10
MAX_USERS: Final = 64  # of a module
READS: Final = 1 << 22  # of the guest's memory, for one question

# Variables of which BTF does not tell the type, unless pahole was told to write all of them.
GLOBALS: Final = {
    "boot_cpu_data": "cpuinfo_x86",
    "contig_page_data": "pglist_data",
    "HYPERVISOR_shared_info": "shared_info *",
    "init_cred": "cred",
    "init_files": "files_struct",
    "init_fs": "fs_struct",
    "init_mm": "mm_struct",
    "init_net": "net",
    "init_nsproxy": "nsproxy",
    "init_pid_ns": "pid_namespace",
    "init_task": "task_struct",
    "init_user_ns": "user_namespace",
    "init_uts_ns": "uts_namespace",
    "iomem_resource": "resource",
    "ioport_resource": "resource",
    "jiffies": "long unsigned int",
    "jiffies_64": "u64",
    "modules": "list_head",
    "panic_cpu": "atomic_t",
    "root_task_group": "task_group",
    "saved_command_line": "char *",
    "system_state": "enum system_states",
    "tainted_mask": "long unsigned int",
    "xen_domain_type": "enum xen_domain_type",
    "xen_start_info": "start_info *",
}

# A task's states, as ps has them; the highest bit that is set counts. TASK_REPORT and TASK_IDLE.
STATES: Final = "SDTtXZP"
TASK_IDLE: Final = 0x402
PF_KTHREAD: Final = 0x200000
MODULE_STATES: Final = ("live", "coming", "going", "unformed")
MODULE_REF_BASE: Final = 1

STEP: Final = re.compile(r"(?:\.|->)([A-Za-z_]\w*)|\[(\w+)\]")
NAMED: Final = re.compile(
    r"(?P<name>.+)\+(?P<offset>0x[0-9a-f]+)/0x[0-9a-f]+(?P<module>( \[.*\])?)"
)
NEAR: Final = 4096  # bytes from a variable's beginning that have its name
NO_C: Final = (
    "no C is understood, but NAME or TYPE ADDRESS, and .NAME, ->NAME or [NUMBER] after it;"
    " POINTER[0] is what a pointer leads to"
)
NO_TYPES: Final = (
    "the kernel's file has no BTF (CONFIG_DEBUG_INFO_BTF), so nothing says what is where in its"
    " structs; take a core, and read it with drgn and debug information"
)
NOT_MAPPED: Final = (
    "the kernel is not mapped where its symbols are: it has not set up its page tables yet, or"
    " another kernel runs"
)
TOO_EARLY: Final = "the kernel has not turned paging on yet, so its addresses lead nowhere"

T = TypeVar("T")


@dataclass(frozen=True)
class Listing(Generic[T]):
    """What a list of the kernel's has; if it is damaged, as far as it can be read, and how."""

    found: list[T]
    trouble: str = ""


@dataclass(frozen=True)
class Task:
    """A thread, as `ps -L` would show it; `ppid` is the parent's process, `cpu` where it last ran.

    `vsz_kib` is the size of its address space; None for a thread of the kernel's own.
    """

    pid: int
    tgid: int
    ppid: int
    comm: str
    state: str  # a letter: R, S, D, T, t, X, Z, P, or I
    cpu: int | None
    vsz_kib: int | None
    address: int


@dataclass(frozen=True)
class LoadedModule:
    """A module, as `lsmod` would show it; `used` is None if it cannot be unloaded."""

    name: str
    size: int
    used: int | None
    users: tuple[str, ...]
    state: str
    address: int


class Kernel:
    """A Linux, by its types, as it is now, seen by the vcpu of `current`.

    All methods raise UsageError, with one sentence, where there is no answer.
    """

    def __init__(self, current: Current, image: Image, read: Read | None = None) -> None:
        """`read` reads the kernel's memory; without one, the kernel's page tables lead there."""
        self._current = current
        self._image = as_mapped(current, image)
        self._read = read or Pages(current, kernel_tables(current, self._image), READS)
        self._linux = Linux(current, self._image, self._read)

    @cached_property
    def types(self) -> Btf:
        """The kernel's types; UsageError if it has none, or if it is too early for any answer."""
        if not self._image.btf:
            raise UsageError(NO_TYPES)
        if tables(self._current) is None:
            raise UsageError(TOO_EARLY)
        try:
            self._read(min(part.start for part in self._image.symbols.parts), 1)
        except XenError:
            raise UsageError(NOT_MAPPED) from None
        return self._image.btf

    # Objects.

    def at(self, spelling: str, address: int) -> Value:
        """What is at an address, which has the type that C calls `spelling`."""
        with told():
            number = self.types.find(spelling)
        if number is None:
            word = spelling.rstrip("* ").rpartition(" ")[2]
            hint = meant(word, self.types.names())
            raise NoSuchName(f"the kernel has no type {spelling!r}{hint}")
        return Value(self.types, self._read, number, address)

    def variable(self, name: str, vcpu: int | None = None) -> Value:
        """A variable by its name; one that each CPU has, of the vcpu of that number."""
        with told():
            found = self.types.variable(name)
        address = self.address(name)
        if found is None:
            if name not in GLOBALS:
                raise UsageError(
                    f"nothing says of which type {name} is: say it, as TYPE {name}, or"
                    f" TYPE *{name} if it is a pointer"
                )
            return self.at(GLOBALS[name], address)
        number, is_per_cpu = found
        if is_per_cpu:
            address = self._of_cpu(address, vcpu)
        return Value(self.types, self._read, number, address)

    def _of_cpu(self, address: int, vcpu: int | None) -> int:
        vcpu = self._current.vcpu.vcpu_id if vcpu is None else vcpu
        if not 0 <= vcpu < len(self._current.domain.vcpus):
            raise NoSuchName(f"there is no vcpu {vcpu}")
        word = self.types.width
        offsets = self.address("__per_cpu_offset")
        with told():
            own = int.from_bytes(self._read(offsets + vcpu * word, word), "little")
        return address + own & (1 << 8 * word) - 1

    def address(self, name: str) -> int:
        """The address of a symbol, while this kernel has its memory."""
        found = self._linux.code.find(name)
        with told():
            is_whole = found >> 8 * self.types.width - 1  # and no offset into each CPU's own
            if is_whole and self._linux.is_anothers(found):
                raise UsageError("another kernel runs by now: this one's memory is not mapped")
        return found

    def again(self, number: int, address: int) -> Value:
        """What is at an address, by the number of its type, which somebody was told."""
        return Value(self.types, self._read, number, address)

    def evaluate(
        self, text: str, address: Callable[[str], int] | None = None, vcpu: int | None = None
    ) -> Value:
        """Find ``init_task.mm->pgd``, ``task_struct 0xffff888003a50000.comm`` and the like.

        `address` makes an address of a word after a type; without it, a number or a symbol.
        """
        spelling, last = self._halves(text)
        place = re.match(r"[^.\[]*?(?=[.\[]|->|$)", last)
        assert place is not None
        if spelling:
            found = self.at(spelling, (address or self._number)(place[0]))
        else:
            found = self.variable(place[0], vcpu)
        at = place.end()
        while at < len(last):
            step = STEP.match(last, at)
            if step is None:
                raise UsageError(f"{last[at:]!r} is no member: say .NAME, ->NAME or [NUMBER]")
            found = found.member(step[1]) if step[1] else found.element(_index(step[2]))
            at = step.end()
        return found

    def _halves(self, text: str) -> tuple[str, str]:
        """The type, empty if there is none, and the rest, to which the type's stars may stick."""
        words = text.split()
        last = words.pop() if words else ""
        name = last.lstrip("*")
        words += "*" * (len(last) - len(name))
        if name[:1] == "&" or (words and words[0][0] in "*&("):
            raise UsageError(f"{text}: {NO_C}")
        with told():
            is_type = self.types.find(" ".join([*words, name])) is not None
        if is_type and (words or self._linux.code.address(name) is None):
            raise NoSuchName(f"{text} is a type: say of what, as {text} ADDRESS")
        return " ".join(words), name

    def _number(self, text: str) -> int:
        return _index(text) if text[:1].isdigit() else self.address(text)

    def named(self, address: int, is_code: bool = False) -> str:
        """An address of the kernel's by its name; empty if it has none.

        Nothing says where a variable ends, so what is far after one is taken for something else.
        """
        found = NAMED.fullmatch(self._linux.code.format(address))
        if found is None or not (is_code or int(found["offset"], 16) < NEAR):
            return ""
        return found["name"] + f"+{found['offset']}" * (found["offset"] != "0x0") + found["module"]

    # Lists.

    def log(self) -> list[LogLine]:
        """The kernel's log; UsageError if there is none yet. It needs no types."""
        lines = self._linux.log()
        if not lines:
            raise UsageError("there is no log of the kernel's that can be read, or none yet")
        return lines

    def running(self) -> dict[int, int]:
        """Which pid each vcpu runs, as far as the kernel says so."""
        tasks = ((v.vcpu_id, self._linux.task(v.vcpu_id)) for v in self._current.domain.vcpus)
        return {number: task.pid for number, task in tasks if task}

    def tasks(self) -> Listing[Task]:
        """All threads: the idle one of the first CPU, then the processes, each with its threads."""
        first = self.variable("init_task")
        found: list[Task] = []
        try:
            found.append(self._task(first))
            for leader in self._entries(first.member("tasks"), "task_struct", "tasks"):
                found.append(self._task(leader))
                found += self._threads(leader)
                if len(found) > MAX_TASKS:
                    raise UsageError(f"it has more than {MAX_TASKS} entries")
        except UsageError as error:
            if not found:
                raise
            words = f"the list of tasks is damaged after pid {found[-1].pid}: {error}"
            return Listing(found, words)
        return Listing(found)

    def _threads(self, leader: Value) -> Iterator[Task]:
        signal = leader.member("signal")
        if not int(signal):  # it is about to be gone
            return
        head = signal.member("thread_head")
        for thread in self._entries(head, "task_struct", "thread_node"):
            if thread.at != leader.at:
                yield self._task(thread)

    def _task(self, task: Value) -> Task:
        state = int(task.member("__state" if "__state" in self._members else "state"))
        exiting, flags = int(task.member("exit_state")), int(task.member("flags"))
        parent, mm = task.member("real_parent"), task.member("mm")
        pages = int(mm.member("total_vm")) if int(mm) and not flags & PF_KTHREAD else None
        return Task(
            int(task.member("pid")),
            int(task.member("tgid")),
            int(parent.member("tgid")) if int(parent) else 0,
            str(task.member("comm").plain()),
            _letter(state, exiting),
            self._cpu(task),
            None if pages is None else pages * 4,
            task.at,
        )

    @cached_property
    def _members(self) -> set[str]:
        return set(self.at("task_struct", 0).names())

    def _cpu(self, task: Value) -> int | None:
        if "cpu" in self._members:  # before 5.16
            return int(task.member("cpu"))
        info = task.member("thread_info")
        return int(info.member("cpu")) if "cpu" in info.names() else None

    def modules(self) -> Listing[LoadedModule]:
        """The modules, the newest first."""
        found: list[LoadedModule] = []
        try:
            for module in self._entries(self.variable("modules"), "module", "list"):
                found.append(self._module(module))
                if len(found) > MAX_MODULES:
                    raise UsageError(f"it has more than {MAX_MODULES} entries")
        except UsageError as error:
            if not found:
                raise
            words = f"the list of modules is damaged after {found[-1].name}: {error}"
            return Listing(found, words)
        return Listing(found)

    def _module(self, module: Value) -> LoadedModule:
        has, state = set(module.names()), int(module.member("state"))
        if "mem" in has:  # since 6.4
            parts = module.member("mem")
            sizes = [parts.element(n).member("size") for n in range(parts.length or 0)]
        else:
            sizes = [module.member(part).member("size") for part in ("core_layout", "init_layout")]
        used = int(module.member("refcnt").member("counter")) if "refcnt" in has else None
        return LoadedModule(
            str(module.member("name").plain()),
            sum(map(int, sizes)),
            None if used is None else used - MODULE_REF_BASE,
            tuple(self._users(module)) if "source_list" in has else (),
            MODULE_STATES[state] if 0 <= state < len(MODULE_STATES) else str(state),
            module.at,
        )

    def _users(self, module: Value) -> Iterator[str]:
        uses = self._entries(module.member("source_list"), "module_use", "source_list")
        for number, use in enumerate(uses):
            if number == MAX_USERS:
                raise UsageError(f"it has more than {MAX_USERS} users")
            yield str(use.member("source").member("name").plain())

    def _entries(self, head: Value, holder: str, member: str) -> Iterator[Value]:
        """The structs of a list, whose head is no part of one. UsageError where it is damaged."""
        whole = self.at(holder, 0)
        inside, at = whole.member(member).at, int(head.member("next"))
        if not at:
            raise UsageError(f"the list at {head.at:#x} is not set up yet")
        seen = {head.at}
        while at != head.at:
            if at in seen:
                raise UsageError(f"it leads in a circle, at {at:#x}")
            seen.add(at)
            found = Value(self.types, self._read, whole.number, at - inside)
            try:
                following = int(found.member(member).member("next"))
            except Unmapped:
                raise Unmapped(f"it leads to {at:#x}, where nothing is mapped") from None
            yield found
            at = following


def _letter(state: int, exiting: int) -> str:
    if state == TASK_IDLE:
        return "I"
    bits = (state | exiting) & (1 << len(STATES)) - 1
    return STATES[bits.bit_length() - 1] if bits else "R"


def _index(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is no number") from None
