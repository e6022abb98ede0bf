"""Whether a program ended for lack of memory: by what it said, and by how much it held at the end.

A native library that cannot allocate rarely says so in one way: Arrow aborts with a sentence, C++ with the name of
an exception, a loader with "failed to map", and a segmentation fault says nothing at all.
"""

from __future__ import annotations

import errno
from pathlib import Path

WORDS = (
    b"memoryerror",
    b"bad_alloc",
    b"out of memory",
    b"cannot allocate memory",
    b"failed to map segment",
    b"memory allocation",
    # The stack of a thread is allocated like everything else.
    b"can't start new thread",
    b"failed to launch worker thread",
)
# A program this close to its limit that dies of a signal has most likely been refused the next allocation.
NEAR = 0.8


def lacks_memory(error: BaseException | None) -> bool:
    """Whether the exception, or what caused it, is about memory; libraries wrap such errors in their own.

    The words of an error about values count for nothing: they quote the file, which may say anything.
    """
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        about_values = isinstance(error, ValueError | LookupError)
        if not about_values and mentions_memory(str(error).encode("utf-8", "replace")):
            return True
        error = error.__cause__ or error.__context__
    return False


def mentions_memory(log: bytes) -> bool:
    """Whether the last words of a program complain of memory."""
    folded = log.lower()
    return any(word in folded for word in WORDS)


def peak_address_space(pid: int) -> int:
    """The most address space that a running process has had, in bytes; 0 where the system does not tell.

    A process that has ended tells no more, so it is asked again and again while it runs.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    peak = next((line for line in status.splitlines() if line.startswith(b"VmPeak:")), None)
    return 0 if peak is None else int(peak.split()[1]) << 10
