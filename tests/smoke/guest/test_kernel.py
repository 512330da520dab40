"""A booted Debian, seen by its own types, is what it says of itself in /proc."""

from __future__ import annotations

import copy
import doctest
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import xenemu
from moduleguest import module_initramfs
from xenemu.smoke.guest import close_all

MODULES = ("watchdog", "xen_wdt")
INIT = b"""#!/bin/sh
mount -t proc proc /proc
insmod /watchdog.ko
insmod /xen_wdt.ko
sleep 1000 &
cat /proc/[0-9]*/task/[0-9]*/stat
echo MODULES
cat /proc/modules
echo RELEASE $(uname -r)
read line
echo got $line
read line
"""
BOOTS = [("debian-cloud-amd64", "pv"), ("debian-6.12-cloud-amd64", "pvh")]


@pytest.fixture(scope="module", params=BOOTS, ids="-".join)
def guest(request, guest_image, tmp_path_factory):
    name, mode = request.param
    initrd = tmp_path_factory.mktemp("linux") / "initrd.gz"
    initrd.write_bytes(module_initramfs(guest_image, name, INIT, MODULES))
    with xenemu.boot(
        guest_image(name), mode=mode, vcpus=2, initrd=initrd, cmdline="console=hvc0 quiet"
    ) as guest:
        early = guest.fork()
        try:
            words = early.kernel["init_task"].comm
            assert words == "swapper"
        except xenemu.UsageError as error:
            assert "has not turned paging on yet" in str(error)
        early.close()
        guest.expect(r"RELEASE (\S+)")
        yield guest
    close_all()


def test_its_tasks_are_those_of_proc(guest):
    stats = re.findall(r"^(\d+) \((.*)\) (\w) (\d+)", guest.output.replace("\r", ""), re.MULTILINE)
    theirs = {int(pid): (comm[:15], int(ppid)) for pid, comm, _, ppid in stats if comm != "cat"}
    ours = {task.pid: (task.comm, task.ppid) for task in guest.kernel.tasks()}
    assert len(theirs) > 40
    named = {pid: what for pid, what in theirs.items() if not what[0].startswith("kworker")}
    assert {pid: ours.get(pid) for pid in named} == named
    lasting = {pid for pid, (comm, _) in ours.items() if not comm.startswith("kworker")}
    assert lasting <= {0, *theirs}
    tasks = {task.comm: task for task in guest.kernel.tasks()}
    assert tasks["sleep"].state == tasks["kthreadd"].state == "S"
    assert tasks["sleep"].vsz_kib > 1000
    assert tasks["kthreadd"].vsz_kib is None
    assert "I" in {task.state for task in tasks.values() if task.comm.startswith("kworker")}
    assert {task.cpu for task in guest.kernel.tasks()} == {0, 1}


def test_its_modules_are_those_of_proc(guest):
    lines = re.findall(r"^(\w+) (\d+) (\d+) (\S+) Live", guest.output, re.MULTILINE)
    assert [line[0] for line in lines] == list(reversed(MODULES))
    assert [
        (module.name, str(module.size), str(module.used), ",".join([*module.users, ""]) or "-")
        for module in guest.kernel.modules()
    ] == [(name, size, used, "-" if users == "-" else users) for name, size, used, users in lines]


def test_its_log_has_what_the_console_has_not(guest):
    log = [line.text for line in guest.kernel.log()]
    assert log[0].startswith("Linux version")
    assert "Linux version" not in guest.output


def test_objects_lead_to_others(guest):
    kernel, release = guest.kernel, re.search(r"RELEASE (\S+)", guest.output)[1]
    first = kernel["init_task"]
    assert (first.comm, first["pid"], kernel["init_task.comm"]) == ("swapper/0", 0, "swapper/0")
    assert first.nsproxy.uts_ns.name.release == release
    assert kernel.at("uts_namespace", guest.symbols["init_uts_ns"]).name.release == release
    assert repr(kernel["system_state"]) == "SYSTEM_RUNNING"
    assert kernel["system_state"] > 0
    assert not first.mm
    assert first.real_parent == first
    assert {first, first.real_parent} == {first}
    assert (first.type_, first.address_) == ("struct task_struct", guest.symbols["init_task"])
    assert repr(first) == f"<struct task_struct {first.address_:#x}>"
    assert int(first.stack) == guest.symbols["init_stack"]
    assert {"comm", "pid", "mm"} <= set(dir(first))
    mask = first.cpus_mask
    assert len(mask.bits) == len(list(mask.bits)) == mask.size_ // 8
    assert str(first.tasks).startswith("(struct list_head) {\n  next = 0x")
    assert "init_task" in kernel
    assert "nope" not in kernel
    init = next(task for task in kernel.tasks() if task.pid == 1)
    assert kernel.at("task_struct", init.address).mm.owner.comm == "init"


def test_each_cpu_has_its_own(guest):
    numbers = [guest.kernel.per_cpu("runqueues.cpu", vcpu) for vcpu in (0, 1)]
    assert numbers == [0, 1]
    with pytest.raises(xenemu.NoSuchName, match=r"^there is no vcpu 2$"):
        guest.kernel.per_cpu("runqueues", 2)


def test_what_there_is_not_is_an_error_of_pythons_too(guest):
    first = guest.kernel["init_task"]
    assert not hasattr(first, "nope")
    with pytest.raises(KeyError):
        guest.kernel["nope"]
    with pytest.raises(xenemu.Unmapped, match=r"is NULL$"):
        _ = first.mm.pgd
    for wrong in (lambda: len(first), lambda: int(first), lambda: copy.copy(first).nope):
        with pytest.raises((TypeError, AttributeError)):
            wrong()


def test_a_member_cannot_be_assigned_to_but_where_it_is_can(guest):
    first = guest.kernel["init_task"]
    before, was = vars(first).copy(), first.prio
    for assign in (lambda: setattr(first, "prio", 3), lambda: first.__setitem__("prio", 3)):
        with pytest.raises(AttributeError, match=r"guest\.memory\.write\(0x[0-9a-f]+, ") as caught:
            assign()
        assert isinstance(caught.value, xenemu.UsageError)
    with pytest.raises(xenemu.NoSuchName, match="did you mean prio"):
        first.pri = 3
    assert (vars(first), first.prio) == (before, was)
    with guest.fork() as other:
        place = int(re.search("0x[0-9a-f]+", str(caught.value))[0], 16)
        other.memory.write(place, (3).to_bytes(4, "little"))
        assert other.kernel["init_task"].prio == 3


def test_what_is_shown_is_short_and_has_its_strings(guest):
    assert str(guest.kernel.at("task_struct", 0)) == "(struct task_struct) <not mapped>"
    line = str(guest.kernel["saved_command_line"])
    assert re.fullmatch(r'\(char \*\) 0x[0-9a-f]+ "console=hvc0 quiet"', line)
    assert str(guest.kernel["iomem_resource"].name).endswith('"PCI mem"')
    with pytest.raises(xenemu.NoSuchName, match=r"; did you mean start_kernel\?$"):
        _ = guest.symbols["strat_kernel"]


def test_a_damaged_list_gives_what_was_found(guest):
    with guest.fork() as broken:
        tasks = broken.kernel.tasks()
        at = tasks[3].address + (guest.kernel["init_task"].tasks.address_ - tasks[0].address)
        broken.memory[at : at + 8] = bytes(8)
        with pytest.raises(xenemu.Damaged, match=r"^the list of tasks is damaged after") as caught:
            broken.kernel.tasks()
        assert [task.pid for task in caught.value.found] == [task.pid for task in tasks[:4]]
    assert len(guest.kernel.tasks()) == len(tasks)


def test_memory_is_the_kernels_own(guest):
    banner = guest.symbols["linux_banner"]
    assert guest.memory[banner : banner + 13] == b"Linux version"
    text = guest.symbols["_text"]
    assert guest.physical[0x1000000:0x1000100] == guest.memory[text : text + 0x100]
    assert guest.symbols.name(guest.symbols["watchdog_register_device"]).endswith("[watchdog]")


def test_it_goes_on_as_if_nobody_had_looked(guest):
    with guest.fork() as copy_:
        copy_.sendline("hello")
        assert copy_.expect("got hello")


def test_the_python_page_shows_what_is_so(guest):
    """Its lines after >>>, but for numbers: of this guest they are others."""
    page = Path(__file__).parents[3] / "docs" / "python.md"
    examples = doctest.DocTestParser().get_examples(page.read_text().replace("```", "\n"))
    names = {"guest": guest}
    for example in examples:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(example.source, str(page), "single"), names)
        printed, wanted = (
            re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*\S*", "N", text)
            for text in (printed.getvalue(), example.want)
        )
        assert printed == wanted, example.source
    assert len(examples) > 6
