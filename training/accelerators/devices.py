"""What this machine has, as its driver tells it. Asking initialises nothing on a device, so that a fork stays safe."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pynvml
from django.conf import settings

SHARED_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


@dataclass(frozen=True)
class Device:
    """A GPU; ``busy`` when any program computes on it, ours or not."""

    uuid: str
    name: str
    memory: int
    busy: bool


def devices() -> list[Device]:
    """The GPUs that runs of this machine may use: none when they are switched off or there is no driver."""
    if not settings.GPU_ENABLED:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        every = [_described(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
        return _visible(every, os.environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def files_of(uuids: Sequence[str]) -> list[str]:
    """The device files through which a program reaches these GPUs, and no others."""
    if not uuids:
        return []
    pynvml.nvmlInit()
    try:
        minors = [pynvml.nvmlDeviceGetMinorNumber(pynvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in uuids]
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return [*SHARED_FILES, *(f"/dev/nvidia{minor}" for minor in minors)]


def _described(handle: object) -> Device:
    return Device(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        busy=bool(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    )


def _visible(every: list[Device], chosen: str | None) -> list[Device]:
    """Those that the worker itself may see: numbers or beginnings of UUIDs, up to the first that names none (CUDA C++
    Programming Guide, section CUDA Environment Variables)."""
    if chosen is None:
        return every
    found: list[Device] = []
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        device = _named(every, name)
        if device is None:
            break
        found.append(device)
    return found


def _named(every: list[Device], name: str) -> Device | None:
    if name.isdecimal():
        return every[int(name)] if int(name) < len(every) else None
    return next((device for device in every if device.uuid.startswith(name)), None)
