"""What a kernel's own types say, of a guest that is memory only."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xenemu.kernel
from btfwriter import Types
from fakes import make_pvh_current
from kernelguest import HIGH, INIT_TASK, MODULES, PER_CPU, PLACES, TASK, TASKS, USE, Guest, types
from xenemu.errors import NoSuchName, Unmapped, UsageError
from xenemu.gdb import objects
from xenemu.kernel import GLOBALS, NEAR, NO_C, NO_TYPES, NOT_MAPPED, TOO_EARLY, LoadedModule


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path)


def test_tasks_are_processes_with_their_threads(guest):
    first = guest.process(1, "init", state=1, mm=HIGH | 0x10F00)
    guest.put(HIGH | 0x10F08, 565)
    guest.task(TASK + 256 * 5, 5, "helper", tgid=1, parent=first)
    guest.process(2, "kthreadd", state=0x402, parent=first)
    found = guest.kernel().tasks()
    assert not found.trouble
    assert [(t.pid, t.tgid, t.ppid, t.comm, t.state, t.vsz_kib) for t in found.found] == [
        (0, 0, 0, "swapper", "R", None),
        (1, 1, 0, "init", "S", 2260),
        (5, 1, 1, "helper", "R", None),
        (2, 2, 1, "kthreadd", "I", None),
    ]
    assert found.found[1].address == first


@pytest.mark.parametrize(
    ("state", "exiting", "letter"),
    [
        *((0, 0, "R"), (1, 0, "S"), (2, 0, "D"), (4, 0, "T"), (8, 0, "t"), (0x80, 0x20, "Z")),
        *((0x80, 0x10, "X"), (0x40, 0, "P"), (0x402, 0, "I"), (0x102, 0, "D"), (0x800, 0, "R")),
    ],
)
def test_a_state_is_a_letter(guest, state, exiting, letter):
    at = guest.process(1, "one", state=state)
    guest.put(at + 4, exiting, 4)
    assert guest.kernel().tasks().found[-1].state == letter


def _circle(guest, at):
    guest.put(at + TASKS, at + TASKS)
    return f"it leads in a circle, at {at + TASKS:#x}"


def _wild(guest, at):
    guest.put(at + TASKS, 0x1234)
    return "it leads to 0x1234, where nothing is mapped"


def _short_circle(guest, at):
    guest.put(at + TASKS, TASK + 256 + TASKS)
    return "it leads in a circle"


@pytest.mark.parametrize("damage", [_circle, _wild, _short_circle])
def test_a_damaged_list_is_told_with_what_was_found(guest, damage):
    guest.process(1, "one")
    words = damage(guest, guest.process(2, "two"))
    found = guest.kernel().tasks()
    assert [task.pid for task in found.found] == [0, 1, 2]
    assert found.trouble.startswith("the list of tasks is damaged after pid 2: ")
    assert words in found.trouble
    assert objects.tasks(guest.kernel())[-1] == found.trouble


def test_a_list_has_a_limit(guest, monkeypatch):
    monkeypatch.setattr(xenemu.kernel, "MAX_TASKS", 2)
    monkeypatch.setattr(xenemu.kernel, "MAX_MODULES", 1)
    for number in (1, 2, 3):
        guest.process(number, "one")
        guest.module(number, f"m{number}")
    assert guest.kernel().tasks().trouble.endswith("it has more than 2 entries")
    assert guest.kernel().modules().trouble.endswith("it has more than 1 entries")


def test_a_list_that_is_not_set_up(guest):
    guest.put(MODULES, 0)
    with pytest.raises(UsageError, match=r"^the list at 0x8000000000010400 is not set up yet$"):
        guest.kernel().modules()


def test_a_process_that_is_about_to_be_gone_has_no_threads(guest):
    guest.put(guest.process(1, "one") + 48, 0)
    assert [task.pid for task in guest.kernel().tasks().found] == [0, 1]


@pytest.mark.parametrize("with_mem", [False, True], ids=["6.1", "6.4"])
def test_modules_as_lsmod_shows_them(tmp_path, with_mem):
    guest = Guest(tmp_path, types(with_mem))
    core = guest.module(0, "core", used=1)
    user = guest.module(1, "user", state=1)
    guest.put(USE + 16, user)
    guest.add(USE, core + 128)
    assert guest.kernel().modules().found == [
        LoadedModule("core", 0x4000, 1, ("user",), "live", core),
        LoadedModule("user", 0x4000, 0, (), "coming", user),
    ]
    assert objects.modules(guest.kernel())[1:] == [
        "core                        16384  1 user",
        "user                        16384  0 (coming)",
    ]


def test_an_object_is_found_by_a_path(guest):
    guest.process(1, "init")
    kernel = guest.kernel()

    def said(text):
        return objects.show(kernel, text, lambda word: int(word, 0))

    assert said("init_task.comm") == ['init_task.comm = (char [16]) "swapper"']
    back = f"{INIT_TASK + TASKS:#x} <init_task+0x10>"
    assert said("init_task.tasks.next->next")[0].endswith(back)
    assert said(f"task_struct {TASK + 256:#x}.real_parent->pid")[0].endswith("= (u32) 0")
    assert said(f"struct task_struct {TASK + 256:#x}.comm[1]")[0].endswith(f"(char) {ord('n')}")
    assert said("system_state") == ["system_state = (enum system_states) BOOTING"]
    assert said("init_task")[:3] == [
        "init_task = (struct task_struct) {",
        "  __state = 0",
        "  exit_state = 0",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope", "the image has no symbol nope"),
        (
            "nameless",
            "nothing says of which type nameless is: say it, as TYPE nameless, or"
            " TYPE *nameless if it is a pointer",
        ),
        ("nope 1", "the kernel has no type 'nope'"),
        ("init_task.nope", "struct task_struct has no member 'nope'"),
        ("init_task.pid.x", "u32 has no member 'x'"),
        ("init_task.comm[16]", "char [16] has no element 16"),
        ("init_task.pid[0]", "u32 is no array"),
        ("init_task.comm[x]", "'x' is no number"),
        ("init_task.comm+1", "'+1' is no member: say .NAME, ->NAME or [NUMBER]"),
        ("init_task.mm->total_vm", f"the struct mm_struct * at {INIT_TASK + 56:#x} is NULL"),
        ("task_struct 12x", "'12x' is no number"),
        ("task_struct", "task_struct is a type: say of what, as task_struct ADDRESS"),
        (
            "struct list_head *",
            "struct list_head * is a type: say of what, as struct list_head * ADDRESS",
        ),
        ("init_tsk", "the image has no symbol init_tsk; did you mean init_task?"),
        ("task_strut 1", "the kernel has no type 'task_strut'; did you mean task_struct?"),
        ("struct modul 1", "the kernel has no type 'struct modul'; did you mean module?"),
        ("init_task.com", "struct task_struct has no member 'com'; did you mean comm?"),
        ("*init_task.mm", f"*init_task.mm: {NO_C}"),
        ("&init_task", f"&init_task: {NO_C}"),
        ("(task_struct *) 1", f"(task_struct *) 1: {NO_C}"),
    ],
)
def test_what_there_is_not_is_told(guest, text, words):
    with pytest.raises(UsageError) as caught:
        guest.kernel().evaluate(text)
    assert str(caught.value) == words


def test_a_star_may_stick_to_the_name(guest):
    guest.put(PLACES["nameless"], INIT_TASK + TASKS)
    kernel = guest.kernel()
    for spelling in ("struct list_head *", "list_head * ", "list_head* "):
        found = kernel.evaluate(f"{spelling}nameless")
        assert (found.spelling, int(found)) == ("struct list_head *", INIT_TASK + TASKS)
    assert kernel.evaluate("list_head *nameless.next").at == INIT_TASK + TASKS


def test_what_is_not_mapped_at_all_is_one_line(guest):
    kernel = guest.kernel()
    for address in ("0", f"{HIGH | 0x50000000:#x}"):
        found = objects.show(kernel, f"task_struct {address}", lambda word: int(word, 0))
        assert found == [f"task_struct {address} = (struct task_struct) <not mapped>"]


def test_data_far_from_a_name_has_none(guest):
    last = PLACES["nameless"]
    kernel = guest.kernel()
    assert kernel.named(last) == "nameless"
    assert kernel.named(last + NEAR - 1) == f"nameless+{NEAR - 1:#x}"
    assert kernel.named(last + NEAR) == ""
    assert kernel.named(last + NEAR, is_code=True) == f"nameless+{NEAR:#x}"
    assert kernel.named(1) == ""


def test_a_variable_that_each_cpu_has(tmp_path):
    guest = Guest(tmp_path, vcpus=2)
    for number, value in enumerate((7, 8)):
        guest.put(PLACES["__per_cpu_offset"] + 8 * number, PER_CPU + 256 * number)
        guest.put(PER_CPU + 256 * number + PLACES["each"], value, 4)
    kernel = guest.kernel()
    assert [int(kernel.variable("each", vcpu)) for vcpu in (None, 0, 1)] == [7, 7, 8]
    with pytest.raises(NoSuchName, match=r"^there is no vcpu 2$"):
        kernel.variable("each", 2)


def test_a_kernel_without_types_says_so_and_a_log_is_missed(tmp_path):
    kernel = Guest(tmp_path, Types()).kernel()
    for ask in (kernel.tasks, kernel.modules, lambda: kernel.at("task_struct", 1)):
        with pytest.raises(UsageError) as caught:
            ask()
        assert str(caught.value) == NO_TYPES
    with pytest.raises(UsageError, match="no log of the kernel's"):
        kernel.log()


def test_before_paging_it_is_too_early(guest):
    guest.current = make_pvh_current()
    with pytest.raises(UsageError) as caught:
        guest.kernel().tasks()
    assert str(caught.value) == TOO_EARLY


def test_a_kernel_that_is_not_mapped_is_told(guest):
    guest.missing.add(INIT_TASK & -4096)
    with pytest.raises(UsageError) as caught:
        guest.kernel().tasks()
    assert str(caught.value) == NOT_MAPPED


def test_what_is_not_mapped_is_told(guest):
    guest.put(INIT_TASK + 48, HIGH | 0x50000000)
    with pytest.raises(Unmapped, match=r"^0x8000000050000000 is not mapped$"):
        int(guest.kernel().evaluate("init_task.signal->thread_head.next"))


def test_types_that_contradict_themselves_are_told(tmp_path):
    btf = Types()
    btf.struct("task_struct", 8, ("comm", 99, 0))
    with pytest.raises(UsageError, match="contradict themselves"):
        Guest(tmp_path, btf).kernel().evaluate("init_task.comm").plain()


def test_globals_are_sorted():
    assert list(GLOBALS) == sorted(GLOBALS, key=str.lower)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0x10000, 0x1EFFF), st.integers(0, 255)), max_size=40))
def test_whatever_is_in_memory_is_told_or_shown(tmp_path_factory, edits):
    guest = Guest(tmp_path_factory.mktemp("kernel"))
    first = guest.process(1, "init", mm=HIGH | 0x10F00)
    guest.task(TASK + 256 * 5, 5, "helper", tgid=1, parent=first)
    guest.module(0, "core")
    for at, byte in edits:
        guest.current.domain.memory.write(at, bytes([byte]))
    kernel = guest.kernel()
    for ask in (
        *(kernel.tasks, kernel.modules),
        lambda: objects.show(kernel, "init_task", lambda word: int(word, 0)),
        lambda: objects.show(kernel, "init_task.real_parent->signal->thread_head", int),
    ):
        with suppress(UsageError):
            ask()
