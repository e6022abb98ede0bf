"""What is to run in a sandbox, as it is handed from the process that wants it to the warden: one JSON file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dlplatform.sandbox.limits import Limits

FOLDER = "/job"  # where the program finds its folder, and starts
PROJECT_ROOT = Path(__file__).resolve().parents[2]
# Of this house the program sees the engine, which it runs on, and nothing else.
HOUSE = ("dlplatform/__init__.py", "dlplatform/engine")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/alternatives")


@dataclass(frozen=True)
class Plan:
    """``work``: the folder on this machine that becomes `/job`, the only one that can be written to.

    ``readable``: {name in `/job`: file or folder of this machine}. ``state``: a folder for the warden alone. ``user``:
    the number that the program runs under; where the warden is not root, its own. ``devices``: files of accelerators.
    ``nice``: how far it and its warden let others go first, up to 19.
    """

    command: list[str]
    work: str
    state: str
    user: int
    parent: int = 0  # without whom it must not go on
    readable: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    spool: str = ""
    devices: list[str] = field(default_factory=list)
    nice: int = 0
    limits: Limits = field(default_factory=Limits)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> Plan:
        """What `write` wrote."""
        raw = json.loads(path.read_text())
        return Plan(**{**raw, "limits": Limits(**raw["limits"])})


def libraries() -> list[str]:
    """Folders of this machine that every program sees, read-only: the system's, Python's, the engine."""
    prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
    python = [prefix for prefix in prefixes if not prefix.startswith("/usr")]
    return [*SYSTEM, *python, *(str(PROJECT_ROOT / name) for name in HOUSE), *SETTINGS]


def devices(more: list[str]) -> list[str]:
    """Devices that the program may use: those that hold nothing, and ``more``."""
    plain = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    return [each for each in [*plain, *more] if Path(each).exists()]
