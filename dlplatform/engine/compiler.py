"""Which C++ compiler there is on this machine, for networks that are compiled. Torch-free: the web process asks too."""

from __future__ import annotations

import os
import shutil

MISSING = "There is no C++ compiler on the machine that would compile the network."


def compiler() -> str | None:
    """The program that compiles here: ``CXX``, else g++; None where it is not installed."""
    return shutil.which(os.environ.get("CXX") or "g++")
