"""What a sandbox uses, counted from outside."""

from __future__ import annotations

import contextlib
import os

import psutil


def files_in(folder: str, most: int) -> tuple[int, int]:
    """(bytes on the disk, entries) of a folder; stops counting above ``most`` entries. Follows no link."""
    size = count = 0
    waiting = [folder]
    while waiting and count <= most:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return size, count


def processes_of(first: int) -> tuple[int, int]:
    """(memory that they hold in bytes, threads of all) of a process and those below it."""
    memory = threads = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(first)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                memory += _memory_of(process)
                threads += process.num_threads()
    return memory, threads


def _memory_of(process: psutil.Process) -> int:
    """What is shared with forks counts once among them, where that can be read."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
