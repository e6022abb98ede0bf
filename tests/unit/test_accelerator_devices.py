"""What a machine's driver tells of its GPUs. The driver is outside: it is played here."""

from types import SimpleNamespace

import pynvml
import pytest

from training.accelerators import devices as asked
from training.accelerators.devices import Device, devices

GIB = 1024**3


@pytest.fixture
def driver(monkeypatch, settings):
    """Two GPUs, the second of them in use."""
    settings.GPU_ENABLED = True
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ended = []
    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: ended.append(True),
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: f"GPU-{'ab'[index]}0",
        "nvmlDeviceGetName": lambda index: "A model",
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=8 * GIB),
        "nvmlDeviceGetComputeRunningProcesses": lambda index: [object()] * index,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    return ended


def test_every_device_is_told_with_whether_it_is_in_use(driver):
    assert devices() == [
        Device("GPU-a0", "A model", 8 * GIB, busy=False), Device("GPU-b0", "A model", 8 * GIB, busy=True)
    ]  # fmt: skip
    assert driver == [True]


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("1", ["GPU-b0"]), ("1,0", ["GPU-b0", "GPU-a0"]), ("GPU-a", ["GPU-a0"]), ("", []), ("-1", []), ("0,7,1", ["GPU-a0"]),
    ],
)  # fmt: skip
def test_a_worker_that_sees_some_gives_runs_only_those(driver, monkeypatch, chosen, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [device.uuid for device in devices()] == seen


def test_switched_off_or_without_a_driver_there_are_none(driver, monkeypatch, settings):
    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert asked.devices() == []
    settings.GPU_ENABLED = False
    assert asked.devices() == []
