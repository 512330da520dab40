"""Give up what a run does not need, once the image, the initrd and the outputs are open.

Unicorn is a large C program that was not written to contain a guest. A guest that breaks out of
Unicorn can do whatever this process may do. So this process may do little. It can read and write
what is open already, allocate memory, look at the clock, take signals, and end.

Three locks hold for the rest of the process's life, each without the others:

* A seccomp filter: every system call fails with EPERM, except those that are declared here. A
  refused call does not kill the process, because libraries try calls that they can do without, and
  such an attempt must not end a run.
* Landlock: no file is opened, made or removed, no TCP port bound or called, no abstract socket
  called, no other process signalled.
* Limits: no core file, no new process, no new descriptor.

A process that keeps copies of itself, for a debugger, may fork. The locks hold for copies, too.

libseccomp makes the filter. Landlock takes only two system calls, because no file or port is
excepted from it. A server that this process starts is kept to what it serves (`keep_to`).
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from xenemu.needs import SECCOMP
from xenemu.records import dataclass

# What Python's own library imports when it is first asked, and a run may ask for: `Counter`'s
# most_common, names of characters in an expression, the width of a traceback's line, EFI's text.
IMPORTED_LATE: Final = ("heapq", "unicodedata", "encodings.utf_16_le")
LIBRARY: Final = SECCOMP.name
MISSING: Final = f"there is no {LIBRARY}; Debian and Ubuntu have it in {SECCOMP.package}"

CALLS: Final = """
    read readv write writev lseek close fstat poll ppoll select pselect6
    brk mmap munmap mremap mprotect madvise
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall getitimer setitimer
    getpid gettid getpgrp futex sched_yield getrandom wait4 exit exit_group
""".split()
# A debugger, or the other end of a wire, comes through a socket that listens already; it may go,
# and come again.
CALLER_CALLS: Final = """
    accept accept4 recvfrom shutdown getsockname getpeername getsockopt setsockopt
""".split()
CALLER_DESCRIPTORS: Final = 4
# A process that is copied gets the descriptors of each copy; a copy gives its right to fork up.
COPIED_CALLS: Final = "recvmsg dup2 dup3 set_robust_list seccomp".split()
COPIED_DESCRIPTORS: Final = 2

F_GETFD, F_SETFD, F_GETFL, F_SETFL = range(1, 5)
TCGETS, TCSETS, TCSETSW, TCSETSF = range(0x5401, 0x5405)
TCGETS2, TCSETS2, TCSETSW2, TCSETSF2 = 0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D
TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO = 0x540F, 0x5413, 0x541B, 0x5421
# Calls of which one argument, counted from 0, must have one of these values.
Bound = tuple[int, tuple[int, ...]]
BOUND_CALLS: Final[dict[str, Bound]] = {
    "fcntl": (1, (F_GETFD, F_SETFD, F_GETFL, F_SETFL)),
    # Without TIOCSTI, which types in the place of the person at the terminal.
    "ioctl": (
        1,
        (
            *(TCGETS, TCSETS, TCSETSW, TCSETSF, TCGETS2, TCSETS2, TCSETSW2, TCSETSF2),
            *(TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO),
        ),
    ),
    "sendto": (4, (0,)),  # to whom the socket is connected
}
PR_SET_PDEATHSIG, PR_GET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 21, 38
FORK_FLAGS: Final = 0x0120_0000 | signal.SIGCHLD  # glibc's: CLONE_CHILD_SETTID, _CLEARTID
BOUND_COPIED_CALLS: Final[dict[str, Bound]] = {
    "clone": (0, (FORK_FLAGS,)),  # no thread, no namespace
    "prctl": (0, (PR_SET_NO_NEW_PRIVS,)),
    "prlimit64": (0, (0,)),  # its own limits
}

# A process that keeps copies of itself, and has a socket to each.
BOUND_KEEPING_CALLS: Final[dict[str, Bound]] = {
    "clone": (0, (FORK_FLAGS,)),
    "socketpair": (0, (socket.AF_UNIX,)),
}

# They go to every process of a terminal.
TERMINAL_SIGNALS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)

SCMP_ACT_ALLOW: Final = 0x7FFF0000
SCMP_ACT_EPERM: Final = 0x00050000 | errno.EPERM
SCMP_CMP_EQ: Final = 4
SCMP_FLTATR_ACT_BADARCH, SCMP_FLTATR_CTL_TSYNC, SCMP_FLTATR_CTL_SSB = 2, 4, 7
ATTRIBUTES: Final = (
    (SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_EPERM),  # calls by int 0x80, and x32's
    (SCMP_FLTATR_CTL_TSYNC, 1),  # all threads, should there be some
    (SCMP_FLTATR_CTL_SSB, 1),  # else older hosts slow this process down, against Spectre 4
)

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_RULE_PATH_BENEATH: Final = 1
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
# How many rights each version knows: to files, to ports, and to other processes.
LANDLOCK_RIGHTS: Final = ((13, 0, 0), (14, 0, 0), (15, 0, 0), (15, 2, 0), (16, 2, 0), (16, 2, 2))
# Rights of every version: to run, change and read a file, and to list a directory.
LANDLOCK_EXECUTE, LANDLOCK_WRITE_FILE, LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1, 2, 4, 8
LANDLOCK_READ: Final = LANDLOCK_EXECUTE | LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
# What a program needs to start, and to look a user up.
PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
SETTINGS: Final = ("/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group")
NOTHING: Final = "/dev/null"


@dataclass(frozen=True)
class Confinement:
    """What holds: `landlock` is its version, or 0; `trouble` says why there is no filter."""

    landlock: int
    trouble: str = ""

    def __str__(self) -> str:
        """For a person, after "confined by"."""
        locks = ["limits"]
        locks += [f"Landlock {self.landlock}"] if self.landlock else []
        locks += ["seccomp"] if not self.trouble else []
        return ", ".join(locks)


def obstacle() -> str:
    """Why this host can have no filter; nothing if it can."""
    if _library() is None:
        return MISSING
    return "its kernel has no seccomp" if _libc().prctl(PR_GET_SECCOMP) < 0 else ""


def landlock_version() -> int:
    """That of this host's kernel; below 1 if it has no Landlock, or has switched it off."""
    flags = LANDLOCK_CREATE_RULESET_VERSION
    return int(_libc().syscall(LANDLOCK_CREATE_RULESET, None, 0, flags))


def confine(
    callers: int = 0, more: Iterable[str] = (), copied: bool = False, copies: int = 0
) -> Confinement:
    """Confine this process, which has one thread; so many descriptors of `callers` may come and go.

    `more` are the names of system calls that the guest's devices need, beside CALLS. With `copied`,
    the process may fork; a copy that is not to fork calls `confine_copy`. `copies` is how many
    forks this process may keep, with a socket to each; all they do is to hold what this one was.

    If this host lacks one of the locks, that lock is left out, and the answer says so. No exception
    is raised.
    """
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    libc, library = _libc(), _library()
    libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    landlock = _landlock(libc)
    spare = callers + (COPIED_DESCRIPTORS if copied else 0) + (copies + 1 if copies else 0)
    _limit(spare, may_fork=copied or copies > 0)
    if library is None:
        return Confinement(landlock, MISSING)
    calls = [*CALLS, *(CALLER_CALLS if callers else ()), *more]
    try:
        if copied:
            _filter(library, [*calls, *COPIED_CALLS], BOUND_COPIED_CALLS)
        else:
            _filter(library, calls, BOUND_KEEPING_CALLS if copies else None)
    except OSError as error:
        return Confinement(landlock, str(error.strerror))
    return Confinement(landlock)


def confine_copy(more: Iterable[str] = ()) -> None:
    """Confine a fork of a process that `confine` has confined to be `copied`: it forks no more.

    `more` are those of that process. A filter can only be added, and the first one lets a process
    signal the one that was copied. So this one can signal none, not even itself.
    """
    library = _library()
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if library is not None:
        with suppress(OSError):  # `confine` could not either
            _filter(library, [*CALLS, *more])


def end_with_parent() -> None:
    """Have this process, and the program that it becomes, killed when its parent ends.

    A program that changes its user takes that back.
    """
    _libc().prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def keep_to(directory: str, writable: bool) -> None:
    """Let this process, and the program that it becomes, reach only `directory` and programs.

    That is Landlock's, as far as this host has it. Without it, nothing is given up. What Landlock
    does not know of, such as a file's mode and owner, stays as it is.
    """
    libc = _libc()
    libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    own = -1 if writable else LANDLOCK_READ
    kept = dict.fromkeys(PROGRAMS, LANDLOCK_READ) | dict.fromkeys(SETTINGS, LANDLOCK_READ_FILE)
    kept[NOTHING] = LANDLOCK_READ_FILE | LANDLOCK_WRITE_FILE
    _landlock(libc, kept | {directory: own})


class Errand:
    """Something to be done in the end, by a process that stays free.

    That process does it when this one says so, and also when this one is killed. Nobody hears of
    the errors of `action`.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        """Begin that process; to be called while this one is small."""
        waiting, self._working = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            try:
                os.close(self._working)
                for signum in TERMINAL_SIGNALS:
                    signal.signal(signum, signal.SIG_IGN)
                os.read(waiting, 1)
                action()
            finally:
                os._exit(0)
        os.close(waiting)

    def run(self) -> None:
        """Have it done, and wait until it is."""
        with suppress(BrokenPipeError):  # it was killed
            os.write(self._working, b"!")
        os.close(self._working)
        os.waitpid(self._process, 0)


def _limit(descriptors: int, may_fork: bool) -> None:
    """Limit what this process may still get; `descriptors` is how many more of them."""
    limits = {resource.RLIMIT_CORE: 0} | ({} if may_fork else {resource.RLIMIT_NPROC: 0})
    with suppress(OSError):
        lowest_free = [os.eventfd(0) for _ in range(descriptors + 1)]
        limits[resource.RLIMIT_NOFILE] = lowest_free[-1]
        for descriptor in lowest_free:
            os.close(descriptor)
    for kind, most in limits.items():
        with suppress(OSError, ValueError):  # it may be lower already
            resource.setrlimit(kind, (most, most))


class _PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _landlock(libc: ctypes.CDLL, kept: Mapping[str, int] | None = None) -> int:
    """Give up all that Landlock knows of; its version on this host, or 0.

    `kept` are the rights to what is in a directory, or to a file; -1 is all of them.
    """
    version = landlock_version()
    if version < 1:
        return 0
    rights = LANDLOCK_RIGHTS[min(version, len(LANDLOCK_RIGHTS)) - 1]
    handled = (ctypes.c_uint64 * len(rights))(*((1 << count) - 1 for count in rights))
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, handled, size, 0)
    if ruleset < 0:
        return 0
    for path, right in (kept or {}).items():
        with suppress(OSError):  # not every host has each
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = _PathBeneath(right & handled[0], descriptor)
            libc.syscall(
                LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0
            )
            os.close(descriptor)
    restricted = libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return version if restricted else 0


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _filter(
    library: ctypes.CDLL, calls: list[str], bound: Mapping[str, Bound] | None = None
) -> None:
    """Refuse every system call but `calls` and the bound ones; OSError says why it cannot be."""
    context = ctypes.c_void_p(library.seccomp_init(SCMP_ACT_EPERM))
    try:
        for attribute, value in ATTRIBUTES:
            library.seccomp_attr_set(context, attribute, value)
        for name in calls:
            _allow(library, context, name)
        own = dict.fromkeys(("kill", "tgkill"), (0, (os.getpid(),)))
        for name, (argument, values) in {**BOUND_CALLS, **own, **(bound or {})}.items():
            for value in values:
                _allow(library, context, name, _Comparison(argument, SCMP_CMP_EQ, value, 0))
        _check(library.seccomp_load(context), "the seccomp filter")
    finally:
        library.seccomp_release(context)


def _allow(library: ctypes.CDLL, context: ctypes.c_void_p, name: str, *if_so: _Comparison) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    comparisons = (_Comparison * len(if_so))(*if_so)
    _check(
        library.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, number, len(if_so), comparisons),
        f"the seccomp filter's rule for {name}",
    )


def _check(status: int, what: str) -> None:
    if status:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")
