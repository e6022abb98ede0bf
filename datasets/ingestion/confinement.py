"""What the child gives up before it opens a file, so that a decoder in hostile hands has little to take.

On Linux the child leaves the network for an empty namespace of its own, is denied the system calls that make sockets
or look into other processes, and keeps no privilege; started by root it becomes `nobody`. Containers refuse some of
this and macOS knows none of it: what could not be given up is written to the log, and the ingestion goes on under
its limits, without credentials in its environment.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from dlplatform.sandbox import kernel
from dlplatform.sandbox.kernel import NOBODY

LINKED = "read-{}.link"  # the files a job reads, by their place in its list


def confine(files: list[str]) -> list[str]:
    """Give up network and privileges; the paths by which `files` are to be read from now on.

    The working directory must be the destination. The parent-death signal has to be set again afterwards: the kernel
    forgets it when a process changes its user.
    """
    if sys.platform != "linux":
        _log("no confinement on this system")
        return files
    alone = _leave_network()
    files = _leave_root(files)
    _drop_capabilities()
    denied = kernel.deny_reading()
    if not alone and not denied:
        _log("the kernel refuses to take the network away")
    return files


def _leave_network() -> bool:
    """Into a network namespace without interfaces; who is not root needs a user namespace around it."""
    try:
        kernel.unshare(kernel.CLONE_NEWNET if os.geteuid() == 0 else kernel.CLONE_NEWNET | kernel.CLONE_NEWUSER)
    except OSError:
        return False
    return True


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


def _drop_capabilities() -> None:
    """Whoever is still root keeps only the right to its own and other people's files, which it may need to start."""
    kernel.keep_capabilities(*([kernel.CAP_DAC_OVERRIDE] if os.geteuid() == 0 else []))


def _log(text: str) -> None:
    sys.stderr.write(f"confinement: {text}\n")
