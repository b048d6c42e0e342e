"""A process gives up what a decoder of foreign pixels never needs, before it touches a file.

Standard library only: it runs before anything that starts threads, since much of what the kernel
takes away it takes from one thread and those that it starts. What each step did is *tried*, not
assumed: a protection counts as active if what it forbids was attempted and failed.
"""

import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

Name = Literal[
    "no_network",
    "no_writes",
    "no_programs",
    "no_new_privileges",
    "unprivileged",
    "bounded_memory",
    "no_core_dumps",
]
NAMES: tuple[Name, ...] = get_args(Name)
_NOBODY = 65534

# linux/prctl.h, linux/seccomp.h, linux/capability.h
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_KEEPCAPS, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
_SECCOMP_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Protection:
    """One thing that a decoder cannot do, or why it could.

    Attributes:
        missing: Empty where it is active.
    """

    name: Name
    missing: str = ""


def confine(memory_bytes: int) -> tuple[Protection, ...]:
    """Give up everything that can be given up here; say what is active.

    Args:
        memory_bytes: Most address space that this process may use.
    """
    libc, place = _libc(), tempfile.gettempdir()
    told: dict[Name, str] = {}
    if libc is not None:
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with suppress(OSError):
            _checked(libc.unshare(_CLONE_NEWNET))  # as root; others are stopped by the filter
        with suppress(OSError):
            _give_up_privileges(libc)
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if libc is not None:
        for step in (_landlock, _seccomp):
            try:
                step(libc)
            except OSError as error:
                told["no_writes"] = told["no_network"] = told["no_programs"] = str(error)
    return tuple(_tried(place, memory_bytes, told))


def _tried(place: str, memory_bytes: int, told: dict[Name, str]) -> Iterator[Protection]:
    attempts: dict[Name, Callable[[], bool]] = {
        "no_network": _can_connect,
        "no_writes": lambda: _can_write(place),
        "no_programs": _can_run,
        "no_new_privileges": lambda: _status("NoNewPrivs") != 1,
        "unprivileged": lambda: os.geteuid() == 0 or _status("CapEff", 16) & ~_KEPT != 0,
        "bounded_memory": lambda: resource.getrlimit(resource.RLIMIT_AS)[0] != memory_bytes,
        "no_core_dumps": lambda: resource.getrlimit(resource.RLIMIT_CORE) != (0, 0),
    }
    for name, can in attempts.items():
        system = f"not with {platform.system()} on {platform.machine()} here"
        yield Protection(name, told.get(name, system) if can() else "")


def _can_connect() -> bool:
    """Try what any connection begins with. Nothing is sent."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except OSError:
        return False
    # Without a filter, a namespace without interfaces is as good.
    return {name for _, name in socket.if_nameindex()} != {"lo"}


def _can_write(place: str) -> bool:
    path = os.path.join(place, f".cohortium-{os.getpid()}")  # noqa: PTH118 - before pathlib
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:
        return False
    os.unlink(path)  # noqa: PTH108
    return True


def _can_run() -> bool:
    """Try to run a file that cannot be run: what forbids it answers before that is seen."""
    try:
        os.execv("/proc/self/cmdline", ["x"])  # noqa: S606
    except PermissionError:
        return _status("Seccomp") != 2
    except OSError:
        return True


def _status(field: str, base: int = 10) -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
            lines = {line.partition(":")[0]: line.partition(":")[2] for line in file}
        return int(lines[field], base)
    except (OSError, KeyError, ValueError):
        return -1


_KEPT = (1 << _DAC_READ_SEARCH) | (1 << _DAC_OVERRIDE)


def _give_up_privileges(libc: ctypes.CDLL) -> None:
    """As root: become nobody, who may still read files, and nothing else of what root may.

    Images of a PACS often belong to other users. Where reading is no capability that this process
    has (some containers), it stays who it is, without any capability.
    """
    held = max(_status("CapPrm", 16), 0)
    kept = next((1 << c for c in (_DAC_READ_SEARCH, _DAC_OVERRIDE) if held >> c & 1), 0)
    if os.geteuid() == 0 and kept:
        _checked(libc.prctl(_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    _checked(libc.capset(header, sets))


# linux/landlock.h: what may be done to files, as far as ABI 1 knows it; later ones add bits.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_BITS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_BITS = 16
_CONNECT_AND_BIND = 3
_ALL_SCOPES = 3


def _landlock(libc: ctypes.CDLL) -> None:
    """Let files be read and nothing else; no TCP; no signals or abstract sockets outside."""
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if abi < 1:
        raise OSError("this kernel has no Landlock")
    files = (1 << _BITS_OF_ABI.get(abi, _NEWEST_BITS)) - 1
    network = _CONNECT_AND_BIND if abi >= 4 else 0
    scopes = _ALL_SCOPES if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = struct.pack("=QQQ", files, network, scopes)
    descriptor = _checked(libc.syscall(_CREATE_RULESET, ruleset, size, 0))
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    beneath = struct.pack("=Qi", _READ_FILE | _READ_DIR, root)
    _checked(libc.syscall(_ADD_RULE, descriptor, 1, beneath, 0))
    _checked(libc.syscall(_RESTRICT_SELF, descriptor, 0))
    os.close(root)
    os.close(descriptor)


# Calls by number, x86-64 (arch/x86/entry/syscalls/syscall_64.tbl). Answered by EPERM.
_FORBIDDEN = (
    # sockets: the parent is spoken to through pipes
    *(41, 42, 43, 44, 46, 49, 50, 53, 288, 307),
    # fork, vfork, execve, execveat; kill, tkill, queued signals, pidfd_send_signal
    *(57, 58, 59, 322, 62, 200, 129, 297, 424),
    # ptrace, process_vm_readv and writev, pidfd_getfd, kcmp
    *(101, 310, 311, 438, 312),
    # creat, truncate, rename, mkdir, rmdir, link, unlink, symlink, mknod, chmod, chown, times
    *(85, 76, 77, 82, 264, 316, 83, 258, 84, 86, 265, 87, 263, 88, 266, 133, 259),
    *(90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280),
    # setxattr, removexattr
    *(188, 189, 190, 197, 198, 199),
    # mounts, namespaces, chroot, file handles (they pass by all folders), quota, swap
    *(165, 166, 155, 161, 272, 308, 303, 304, 179, 167, 168, 428, 429, 430, 432, 442),
    # modules, kexec, reboot, bpf, perf, userfaultfd, io_uring, keys, shared memory, queues
    *(175, 313, 176, 246, 320, 169, 321, 298, 323, 425, 426, 427, 248, 249, 250, 29, 64, 68, 240),
)
_OPEN, _OPENAT, _CLONE, _TGKILL = 2, 257, 56, 234
_MISSING = (437, 435)  # openat2, clone3: their arguments cannot be seen; libc does without
_AUDIT_ARCH = 0xC000003E
_X32 = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
# linux/bpf_common.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38


def _seccomp(libc: ctypes.CDLL) -> None:
    """Forbid calls that a decoder never needs, on the one processor whose numbers are tested."""
    if platform.machine() != "x86_64" or sys.byteorder != "little":
        raise OSError(f"no filter of system calls for {platform.machine()}")
    program = _filter(os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _checked(libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.c_char_p(whole), 0, 0))


def _filter(pid: int) -> bytes:
    """Return the filter (seccomp(2)); of an argument, the low half says all that is asked here."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    def argument(number: int) -> bytes:
        return step(_LOAD, 16 + 8 * number)

    refuse = step(_RETURN, _ERRNO | _EPERM)
    allow = step(_RETURN, _ALLOW)
    lines = [
        step(_LOAD, 4),
        step(_EQUAL, _AUDIT_ARCH, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),
        step(_AT_LEAST, _X32, 0, 1),
        step(_RETURN, _KILL),
    ]
    for call in _FORBIDDEN:
        lines += [step(_EQUAL, call, 0, 1), refuse]
    for call in _MISSING:
        lines += [step(_EQUAL, call, 0, 1), step(_RETURN, _ERRNO | _ENOSYS)]
    for call, number in ((_OPEN, 1), (_OPENAT, 2)):
        lines += [step(_EQUAL, call, 0, 4), argument(number)]
        lines += [step(_ANY_BIT, _WRITING, 0, 1), refuse, allow]
    lines += [step(_EQUAL, _CLONE, 0, 4), argument(0)]
    lines += [step(_ANY_BIT, _CLONE_THREAD, 1, 0), refuse, allow]
    lines += [step(_EQUAL, _TGKILL, 0, 4), argument(0), step(_EQUAL, pid, 1, 0), refuse, allow]
    return b"".join([*lines, allow])


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
