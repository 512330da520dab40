"""What test_confine.py runs in processes of their own: system calls by native code, late imports.

Each function here is called by a new Python; its answer is JSON on standard output.
"""

from __future__ import annotations

import ctypes
import dis
import json
import mmap
import os
import signal
import socket
import sys
import types
from importlib import import_module
from importlib.util import find_spec, resolve_name

from xenemu import confine
from xenemu.machine import Machine
from xenemu.outcome import End, Outcome
from xenemu.smoke import worker
from xenemu.smoke.session import Session
from xenemu.smoke.verdict import Finding, Verdict

AT_FDCWD, TIOCSTI, PTRACE_ATTACH, NOBODY = -100, 0x5412, 16, 0x7FFFFFFF
PASSWD, NOWHERE = b"/etc/passwd", b"/nonexistent/file"
CALLED = socket.create_server(("127.0.0.1", 0))
CALLER = socket.socket()
ADDRESS = b"\x02\0" + CALLED.getsockname()[1].to_bytes(2, "big") + bytes((127, 0, 0, 1)) + bytes(8)
READING, WRITING = os.pipe()
ROOM = ctypes.create_string_buffer(4096)

# Number on x86-64, and arguments with which it does, or nearly does, what it is for.
CALLS = {
    "open": (2, PASSWD, os.O_RDONLY),
    "openat": (257, AT_FDCWD, PASSWD, os.O_RDONLY),
    "openat2": (437, AT_FDCWD, PASSWD, bytes(24), 24),
    "creat": (85, NOWHERE, 0o600),
    "stat": (4, PASSWD, ROOM),
    "newfstatat": (262, AT_FDCWD, PASSWD, ROOM, 0),
    "readlink": (89, b"/proc/self/exe", ROOM, 100),
    "chdir": (80, b"/"),
    "unlink": (87, NOWHERE),
    "rename": (82, NOWHERE, NOWHERE),
    "chmod": (90, NOWHERE, 0o777),
    "memfd_create": (319, b"", 0),
    "dup": (32, 1),
    "pipe": (22, ROOM),
    "execve": (59, NOWHERE, None, None),
    "execveat": (322, AT_FDCWD, NOWHERE, None, None, 0),
    "fork": (57,),
    "clone": (56, signal.SIGCHLD, None, None, None, None),
    "clone3": (435, None, 0),
    "socket": (41, socket.AF_INET, socket.SOCK_STREAM, 0),
    "socketpair": (53, socket.AF_UNIX, socket.SOCK_STREAM, 0, ROOM),
    "connect": (42, CALLER.fileno(), ADDRESS, 16),
    "bind": (49, CALLER.fileno(), bytes.fromhex("0200000000000000") + bytes(8), 16),
    "sendmsg": (46, CALLER.fileno(), None, 0),
    "ptrace": (101, PTRACE_ATTACH, NOBODY, None, None),
    "process_vm_readv": (310, os.getppid(), None, 0, None, 0, 0),
    "kill another": (62, os.getppid(), 0),
    "tgkill another": (234, os.getppid(), os.getppid(), 0),
    "pidfd_open": (434, os.getpid(), 0),
    "prlimit64": (302, 0, 7, None, ROOM),
    "prctl": (157, 38, 1, 0, 0, 0),
    "io_uring_setup": (425, 0, None),
    "setuid": (105, os.getuid()),
    "type for the person": (16, 0, TIOCSTI, b"x"),
    "call of x32": (0x40000000 + 39,),
}
# mov $__NR_getpid of i386, %eax; int $0x80; ret
INT_80 = bytes.fromhex("b814000000 cd80 c3")

# Modules and classes whose functions are not called while a guest runs, or can do without imports.
NOT_THEN = """
    _distutils_hack _frozen_importlib_external _sitebuiltins backports.zstd capstone confined
    datetime email encodings gzip hashlib msgspec.yaml multiprocessing pathlib platform posixpath
    pydantic
    runpy shutil site subprocess sysconfig typer typing_extensions urllib warnings
    msgspec.yaml xenemu.cli._completed
    xenemu.cli._read_ahead xenemu.cli.clock_options xenemu.cli.input_options
    xenemu.cli.record_options xenemu.cli.run.run
    xenemu.cli.covering xenemu.cli.dumping.Dumping.parse xenemu.disks xenemu.image.lines
    xenemu.image.loader._not_a_kernel
    xenemu.machine.machine.Machine.snapshot
    xenemu.cli.viewing xenemu.machine.core.Core.note_lane
    xenemu.cli.suspend_options xenemu.shares xenemu.smoke.session.Session._afterlife
    xenemu.smoke.session._dumper xenemu.smoke.session._record
    xenemu.smoke.session._recorded
    xenemu.smoke.wire.Inbox zipfile
""".split()
IMPORT_NAME = dis.opmap["IMPORT_NAME"]
MAIN_FUNCTIONS = ("main", "_main", "_test", "_test_generator")


def attempts() -> dict[str, int]:
    """What each call came to: errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, (number, *arguments) in CALLS.items():
        words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
        result = libc.syscall(ctypes.c_long(number), *words)
        found[name] = ctypes.get_errno() if result < 0 else 0
        if number in (56, 57) and result == 0:
            os._exit(0)
    buffer = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    buffer.write(INT_80)
    code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
    found["int 0x80"] = max(0, -code())
    return found


def late_imports() -> list[str]:
    """Each import in a function of a loaded module that would read a file, if called now."""
    found = []
    for name, module in list(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if _is_ignored(name) or not hasattr(loader, "get_code"):
            continue
        for function in _functions(_code(loader, name)):
            if function.co_name not in MAIN_FUNCTIONS:
                found += [
                    f"{name}.{function.co_qualname}: {late}" for late in _lacks(function, name)
                ]
    return sorted(each for each in found if not _is_ignored(each.partition(":")[0]))


def _is_ignored(name: str) -> bool:
    return any(f"{name}.".startswith(f"{each}.") for each in NOT_THEN)


def _code(loader, name: str) -> types.CodeType | None:
    try:
        return loader.get_code(name)
    except ImportError:  # part of Python's own start
        return None


def _functions(code: types.CodeType | None):
    for constant in code.co_consts if code else ():
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _functions(constant)


def _lacks(function: types.CodeType, name: str):
    if IMPORT_NAME not in function.co_code[::2]:
        return
    instructions = list(dis.get_instructions(function))
    package = name if hasattr(sys.modules[name], "__path__") else name.rpartition(".")[0]
    for at, instruction in enumerate(instructions):
        if instruction.opname != "IMPORT_NAME":
            continue
        level, names = (each.argval for each in instructions[at - 2 : at])
        target = resolve_name("." * level + instruction.argval, package)
        if target not in sys.modules:
            yield from [target] if _is_file(target) else []
            continue
        for each in names or ():
            part = f"{target}.{each}"
            if not hasattr(sys.modules[target], each) and part not in sys.modules:
                yield from [part] if _is_file(part) else []


def _is_file(module: str) -> bool:
    try:
        found = find_spec(module)
    except ImportError:
        return False
    return found is not None and found.origin not in ("built-in", "frozen")


# What a new Python calls.


def call() -> None:
    """System calls in a process that is not confined."""
    print(json.dumps(attempts()))


def call_confined(*without: str, debugger: bool = False) -> None:
    """The same in one that is, `without` some of the locks."""
    nothing = {
        "_library": lambda: None,
        "_landlock": lambda libc: 0,
        "_limit": lambda *_, **__: None,
    }
    for name in without:
        setattr(confine, name, nothing[name])
    confinement = confine.confine(confine.CALLER_DESCRIPTORS if debugger else 0)
    print(json.dumps(attempts() | {"trouble": confinement.trouble, "told": str(confinement)}))


def call_copied() -> None:
    """The same in a process that others may be copied from, and in a copy of it."""
    confine.confine(copied=True)
    reading, writing = READING, WRITING
    if os.fork() == 0:
        confine.confine_copy()
        os.write(writing, json.dumps(attempts()).encode())
        os._exit(0)
    print(json.dumps([attempts(), json.loads(os.read(reading, 1 << 16))]))


def run(*arguments: str) -> None:
    """`xenemu run`, which tries system calls where it would run the guest."""

    def instead(*_: object) -> Outcome:
        call()
        return Outcome(End.POWEROFF, "")

    from xenemu import cli  # noqa: PLC0415 (it brings modules along that a worker has not)

    Machine.run = instead
    cli.main(["run", *arguments])


def run_with(*arguments: str) -> None:
    """`xenemu`, as a process of its own, which tells of a descriptor when its guest begins."""

    def instead(*_: object) -> Outcome:
        print(json.dumps(is_open(int(arguments[0]))))
        return Outcome(End.POWEROFF, "")

    from xenemu.__main__ import main  # noqa: PLC0415 (as above)

    Machine.run = instead
    sys.argv[1:] = arguments[1:]
    main()


def is_open(descriptor: int) -> bool:
    """Whether this process has it."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def run_late(*arguments: str) -> None:
    """`xenemu run`, which tells of late imports where it would be confined."""

    def instead(*_: object, **more: object) -> confine.Confinement:
        _import_late()
        print(json.dumps(late_imports()))
        return confine.Confinement("", 0)

    from xenemu import cli  # noqa: PLC0415 (as above)

    import_module("xenemu.cli.attended").confine = instead
    cli.main(["run", *arguments])


def _import_late(*_: object) -> None:
    for module in confine.IMPORTED_LATE:
        import_module(module)


# What a worker of smoke's calls.


def boot(connection: object, boot: object, _kernel: object = None) -> None:
    """A worker that tries system calls where it would run the guest."""
    Session.run_plan = lambda session: [Finding(Verdict.PANIC, json.dumps(attempts()))]
    worker.main(connection, boot)


def boot_with(connection: object, boot: object, _kernel: object = None) -> None:
    """A worker that tells of a descriptor, whose number is the boot's name."""
    found = is_open(int(boot.name))
    Session.run_plan = lambda session: [Finding(Verdict.PANIC, json.dumps(found))]
    worker.main(connection, boot)


def boot_late(connection: object, boot: object, _kernel: object = None) -> None:
    """A worker that tells of late imports where it would run the guest."""
    worker.confine = _import_late
    Session.run_plan = lambda session: [Finding(Verdict.PANIC, json.dumps(late_imports()))]
    worker.main(connection, boot)
