"""What the child gives up before it opens a file, so that a decoder in hostile hands has little to take.

On Linux the child leaves the network for an empty namespace of its own, is denied the system calls that make sockets
or look into other processes, and keeps no privilege; started by root it becomes `nobody`. Containers refuse some of
this and macOS knows none of it: what could not be given up is written to the log, and the ingestion goes on under
its limits, without credentials in its environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import sysconfig
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
CAPABILITY_VERSION, CAP_DAC_OVERRIDE = 0x20080522, 1
NOBODY = 65534  # user and group on every Linux, and the kernel's word for whom it does not know
LINKED = "read-{}.link"  # the files a job reads, by their place in its list

# machine → (audit architecture, numbers of the calls that are denied). The first two make sockets, io_uring past any
# filter; the others read another process of the same user: ptrace, process_vm_readv and _writev, pidfd_getfd.
DENIED = {
    "x86_64": (0xC000003E, (41, 425, 101, 310, 311, 438)),
    "aarch64": (0xC00000B7, (198, 425, 117, 270, 271, 438)),
}
ALLOW, DENY = 0x7FFF0000, 0x00050000 | 13  # an error number, EACCES, instead of a kill: libraries cope with it
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
OFFSET_OF_NUMBER, OFFSET_OF_ARCHITECTURE = 0, 4
X32_CALLS = 0x40000000  # the same calls under other numbers


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def confine(files: list[str]) -> list[str]:
    """Give up network and privileges; the paths by which `files` are to be read from now on.

    The working directory must be the destination. The parent-death signal has to be set again afterwards: the kernel
    forgets it when a process changes its user.
    """
    if sys.platform != "linux":
        _log("no confinement on this system")
        return files
    libc = ctypes.CDLL(None, use_errno=True)
    alone = _leave_network(libc)
    files = _leave_root(files)
    _drop_capabilities(libc)
    denied = _deny_calls(libc)
    if not alone and not denied:
        _log("the kernel refuses to take the network away")
    return files


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Into a network namespace without interfaces; who is not root needs a user namespace around it."""
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    return bool(libc.unshare(flags) == 0)


def _leave_root(files: list[str]) -> list[str]:
    """From root to nobody, where nobody can still read the interpreter and the files; the paths of the files.

    The folders above the destination are closed to others, so the files are linked into it and everything goes by
    relative names.
    """
    if os.geteuid() != 0:
        return files
    links = [LINKED.format(place) for place in range(len(files))]
    try:
        for link, file in zip(links, files, strict=True):
            Path(link).hardlink_to(file)
        reason = "" if _readable_to_nobody([*links, *_program_folders()]) else "closed to other users"
    except OSError:
        reason = "on another file system than the destination"
    if reason:
        _log(f"stays root: the interpreter or a file to read is {reason}")
        return files
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return links


def _program_folders() -> list[str]:
    """Where modules are loaded from, some of them only once a file needs them."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*libraries, str(Path(__file__).parent)]


def _readable_to_nobody(paths: list[str]) -> bool:
    """Asked as nobody, since only the kernel knows every rule."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        return all(os.access(path, os.R_OK, effective_ids=True) for path in paths)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Whoever is still root keeps only the right to its own and other people's files, which it may need to start."""
    kept = 1 << CAP_DAC_OVERRIDE if os.geteuid() == 0 else 0
    header = (ctypes.c_uint * 2)(CAPABILITY_VERSION, 0)
    libc.capset(header, (ctypes.c_uint * 6)(kept, kept, 0, 0, 0, 0))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _deny_calls(libc: ctypes.CDLL) -> bool:
    """A filter in the kernel, which also holds for whatever the child starts."""
    known = DENIED.get(platform.machine())
    if known is None or sys.maxsize < 2**32:
        return False
    rules = _filter(*known)
    program = _Program(len(rules), (_Instruction * len(rules))(*rules))
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(architecture: int, denied: tuple[int, ...]) -> list[_Instruction]:
    """Everything is allowed but the denied calls and all calls of a foreign architecture, whose numbers differ."""
    count = len(denied)
    return [
        _Instruction(LOAD, 0, 0, OFFSET_OF_ARCHITECTURE),
        _Instruction(JUMP_IF_EQUAL, 0, count + 3, architecture),
        _Instruction(LOAD, 0, 0, OFFSET_OF_NUMBER),
        _Instruction(JUMP_IF_AT_LEAST, count + 1, 0, X32_CALLS),
        *(_Instruction(JUMP_IF_EQUAL, count - index, 0, number) for index, number in enumerate(denied)),
        _Instruction(RETURN, 0, 0, ALLOW),
        _Instruction(RETURN, 0, 0, DENY),
    ]


def _log(text: str) -> None:
    sys.stderr.write(f"confinement: {text}\n")
