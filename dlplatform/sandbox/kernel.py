"""Calls of the Linux kernel that Python has no names for, and the filter of system calls."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH: Final = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SECCOMP_MODE_FILTER: Final = 2
CAPABILITY_VERSION, CAP_DAC_OVERRIDE, CAP_KILL, LAST_CAPABILITY = 0x20080522, 1, 5, 63
NOBODY: Final = 65534  # user and group on every Linux, and the kernel's word for whom it does not know
AF_UNIX: Final = 1

# machine → (audit architecture, number of each call)
_NAMES = (
    "socket", "io_uring_setup", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "mount", "umount2",
    "pivot_root", "unshare", "setns", "add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd",
    "open_by_handle_at", "clone", "clone3", "memfd_create", "memfd_secret", "shmget",
)  # fmt: skip
_NUMBERS: Final = {
    "x86_64": (0xC000003E, (41, 425, 101, 310, 311, 438, 165, 166, 155, 272, 308, 248, 249, 250, 321, 298, 323, 304,
                            56, 435, 319, 447, 29)),
    "aarch64": (0xC00000B7, (198, 425, 117, 270, 271, 438, 40, 39, 41, 97, 268, 217, 218, 219, 280, 241, 282, 265,
                             220, 435, 279, 447, 194)),
}  # fmt: skip
# Nobody who reads files for others needs these; the last four read another process of the same user.
READING: Final = ("socket", "io_uring_setup", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd")
_WITH_CONDITIONS: Final = ("socket", "clone", "clone3")
ALLOW, DENY, UNKNOWN_CALL = 0x7FFF0000, 0x00050000 | 13, 0x00050000 | 38  # EACCES and ENOSYS rather than a kill
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
OFFSET_OF_NUMBER, OFFSET_OF_ARCHITECTURE, OFFSET_OF_FIRST_ARGUMENT = 0, 4, 16
X32_CALLS: Final = 0x40000000  # the same calls under other numbers

Rule = tuple[int, int, int, int]


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of the given kinds for new ones. Raises OSError."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Raises OSError."""
    arguments = (each.encode() for each in (source, target, kind))
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode()), f"mount on {target}")


def change_root(root: str) -> None:
    """Make ``root``, a mount point, all that there is; what was there before is let go. Raises OSError."""
    os.chdir(root)
    number = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _checked(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def die_with_parent(sent: int) -> None:
    """Forgotten by the kernel when a process changes its user, so that it has to be asked for again then."""
    _libc.prctl(PR_SET_PDEATHSIG, int(sent), 0, 0, 0)


def lower_priority(nice: int) -> None:
    """Let others go first. Linux may weigh whole sessions against each other and a process within its own alone, so that
    the session of this process has to be lowered as well."""
    if nice:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def hide_memory() -> None:
    """Nobody of the same user may look into this process."""
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def narrow_capabilities() -> None:
    """None can be gained any more by whatever program is started; to be done while still root."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def keep_capabilities(*kept: int) -> None:
    """Give up all capabilities but these, and for good every way to gain more."""
    bits = sum(1 << capability for capability in kept)
    header = (ctypes.c_uint * 2)(CAPABILITY_VERSION, 0)
    _libc.capset(header, (ctypes.c_uint * 6)(bits, bits, 0, 0, 0, 0))
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def filters_known() -> bool:
    """Whether system calls can be filtered on this machine."""
    return platform.machine() in _NUMBERS and sys.maxsize > 2**32


def deny_reading() -> bool:
    """A filter for a program that reads files: no sockets at all, no look into other processes."""
    return _install([(number, []) for number in _numbers(READING)])


def deny_escapes() -> bool:
    """A filter for a program of anybody: nothing that makes, joins or mounts a world of its own, no memory that is
    counted nowhere, and sockets within this machine alone, which a namespace of the network confines."""
    if not filters_known():
        return False
    socket, clone, clone3 = _numbers(_WITH_CONDITIONS)
    plain: list[tuple[int, list[Rule]]] = [
        (number, []) for number in _numbers(tuple(name for name in _NAMES if name not in _WITH_CONDITIONS))
    ]
    first: Rule = (LOAD, 0, 0, OFFSET_OF_FIRST_ARGUMENT)
    allow, deny, unknown = ((RETURN, 0, 0, answer) for answer in (ALLOW, DENY, UNKNOWN_CALL))
    return _install(
        [
            *plain,
            (socket, [first, (JUMP_IF_EQUAL, 0, 1, AF_UNIX), allow, deny]),
            (clone, [first, (JUMP_IF_ANY, 1, 0, CLONE_NEWUSER), allow, deny]),
            (clone3, [unknown]),  # its flags lie in memory, where no filter can look: libraries fall back to clone
        ]
    )


def _numbers(names: tuple[str, ...]) -> list[int]:
    known = _NUMBERS.get(platform.machine())
    return [] if known is None else [known[1][_NAMES.index(name)] for name in names]


def _install(rules: list[tuple[int, list[Rule]]]) -> bool:
    """A filter in the kernel, which also holds for whatever the process starts. False where there is none."""
    if not filters_known():
        return False
    program = [_Instruction(*rule) for rule in _assembled(_NUMBERS[platform.machine()][0], rules)]
    filled = _Program(len(program), (_Instruction * len(program))(*program))
    return bool(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filled), 0, 0) == 0)


def _assembled(architecture: int, rules: list[tuple[int, list[Rule]]]) -> list[Rule]:
    """Everything is allowed but what the rules deny and all calls of a foreign architecture, whose numbers differ.

    A rule is the number of a call and what decides about it; nothing decides means denied.
    """
    deny: Rule = (RETURN, 0, 0, DENY)
    program: list[Rule] = [
        (LOAD, 0, 0, OFFSET_OF_ARCHITECTURE), (JUMP_IF_EQUAL, 1, 0, architecture), deny,
        (LOAD, 0, 0, OFFSET_OF_NUMBER), (JUMP_IF_AT_LEAST, 0, 1, X32_CALLS), deny,
    ]  # fmt: skip
    for number, body in rules:
        block = body or [deny]
        program += [(JUMP_IF_EQUAL, 0, len(block), number), *block]
    return [*program, (RETURN, 0, 0, ALLOW)]
