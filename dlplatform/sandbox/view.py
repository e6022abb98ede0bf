"""The files that a sandboxed program sees: a new root in memory, with little mounted into it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dlplatform.sandbox import kernel
from dlplatform.sandbox.plan import FOLDER, Plan, devices, libraries

CLOSED = kernel.MS_NOSUID | kernel.MS_NODEV
SCRATCH_SHARE = 4  # part of the memory that /tmp and /dev/shm may hold, each
# Flags that a mount was given by somebody mightier must be given again when it is changed.
_KEPT = {2: kernel.MS_NOSUID, 4: kernel.MS_NODEV, 8: kernel.MS_NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}
PEOPLE = "root:x:0:0::/:/sbin/nologin\nrunner:x:{user}:{user}::/tmp:/sbin/nologin\n"
GROUPS = "root:x:0:\nrunner:x:{user}:\n"


def enter(plan: Plan) -> None:
    """Leave the files of this machine for those of the plan. Raises OSError."""
    root = Path(plan.state) / "root"
    root.mkdir(exist_ok=True)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", str(root), "tmpfs", CLOSED, "size=16m,mode=755")
    _system_folders(root, plan)
    for source in libraries():
        _show(root, source)
    _job_folder(root, plan)
    kernel.change_root(str(root))
    _remount("/", kernel.MS_RDONLY | CLOSED)
    os.chdir(FOLDER)


def _show(root: Path, source: str) -> None:
    """A file or folder of this machine in its own place, read-only; a link as the link that it is."""
    target = root / source.lstrip("/")
    if not os.path.lexists(source) or os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_symlink() and Path(source).parent == Path("/"):
        target.symlink_to(Path(source).readlink())  # /lib → usr/lib
    else:
        _bind(source, target, kernel.MS_RDONLY)


def _bind(source: str, target: Path, flags: int = 0) -> None:
    """Mount a file or folder at a place that is made when missing."""
    if not os.path.lexists(target):
        if Path(source).is_dir():
            target.mkdir(parents=True)
        else:
            target.touch()
    kernel.mount(source, str(target), "", kernel.MS_BIND | kernel.MS_REC)
    _remount(str(target), flags | CLOSED)


def _remount(target: str, flags: int) -> None:
    locked = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in _KEPT.items() if locked & bit)
    kernel.mount("none", target, "", kernel.MS_REMOUNT | kernel.MS_BIND | flags | kept)


def _system_folders(root: Path, plan: Plan) -> None:
    for name in ("proc", "dev", "tmp", "etc"):
        (root / name).mkdir(exist_ok=True)
    # Where a container hides parts of its own /proc no other can be mounted; a program can do without.
    with contextlib.suppress(OSError):
        kernel.mount("proc", str(root / "proc"), "proc", CLOSED | kernel.MS_NOEXEC)
    for device in devices(plan.devices):
        target = root / device.lstrip("/")
        target.touch()
        kernel.mount(device, str(target), "", kernel.MS_BIND)
    (root / "dev/shm").mkdir()
    for scratch in ("dev/shm", "tmp"):
        kernel.mount(
            "tmpfs", str(root / scratch), "tmpfs", CLOSED, f"size={plan.limits.memory // SCRATCH_SHARE},mode=1777"
        )
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        (root / "dev" / name).symlink_to(f"/proc/self/fd/{number}")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "etc/passwd").write_text(PEOPLE.format(user=plan.user))
    (root / "etc/group").write_text(GROUPS.format(user=plan.user))


def _job_folder(root: Path, plan: Plan) -> None:
    """The folder of the job, with what may only be read mounted over it."""
    target = root / FOLDER.lstrip("/")
    _bind(plan.work, target)
    for name, source in plan.readable.items():
        _bind(source, target / name, kernel.MS_RDONLY)
