"""What the monitor shows of a Linux by its own types: tasks, modules and objects, as lines."""

from __future__ import annotations

from collections.abc import Callable

from xenemu.kernel import Kernel, LoadedModule, Task


def tasks(kernel: Kernel) -> list[str]:
    """A line for each task; a thread of the kernel's own has its name in brackets."""
    listing, running = kernel.tasks(), kernel.running()
    runs = set(running.values())
    lines = [f"  {'PID':>6} {'PPID':>6} {'CPU':>3} S {'VSZ':>9} {'TASK':<18} COMMAND"]
    lines += [f"{'>' if task.pid in runs else ' '} {_task(task)}" for task in listing.found]
    return lines + [listing.trouble] * bool(listing.trouble)


def _task(task: Task) -> str:
    cpu = "" if task.cpu is None else task.cpu
    size = "" if task.vsz_kib is None else f"{task.vsz_kib}K"
    name = f"[{task.comm}]" if task.vsz_kib is None else task.comm
    name = name if task.pid == task.tgid else f"{name} (thread of {task.tgid})"
    numbers = f"{task.pid:>6} {task.ppid:>6} {cpu:>3} {task.state} {size:>9}"
    return f"{numbers} {task.address:#018x} {name}"


def modules(kernel: Kernel) -> list[str]:
    """A line for each module, with a state that is not the usual one."""
    listing = kernel.modules()
    if not listing.found:
        return ["no module is loaded"]
    lines = [f"{'Module':<24} {'Size':>8}  Used by"]
    lines += map(_module, listing.found)
    return lines + [listing.trouble] * bool(listing.trouble)


def _module(module: LoadedModule) -> str:
    used = "-" if module.used is None else module.used
    state = "" if module.state == "live" else f" ({module.state})"
    return f"{module.name:<24} {module.size:>8}  {used} {','.join(module.users)}".rstrip() + state


def show(kernel: Kernel, text: str, address: Callable[[str], int]) -> list[str]:
    """An object as C would write it: its name, its type and address, and what is in it."""
    found = kernel.evaluate(text, address)
    first, *more = found.lines(kernel.named)
    return [f"{text} = ({found.spelling}) {first}", *more]
