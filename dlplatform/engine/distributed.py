"""Several processes that train one model: each with the whole model (DDP), or each with a part of it (FSDP2)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dlplatform.engine.checkpoints import Loaded
from dlplatform.engine.processes import Processes
from dlplatform.engine.transformers_models import parts

TIMEOUT: Final = timedelta(minutes=5)
MEETING: Final = timedelta(seconds=20)
ATTEMPTS: Final = 5
SHARE: Final = 0.5  # of a device's memory: the rest is for what a batch computes
_WHOLE: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD: Final = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Joined(Processes):
    """Several processes that each hold the whole model (DDP)."""

    strategy = "ddp"

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device

    def wrap(self, network: nn.Module) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True,
            find_unused_parameters=any(True for _ in parts(network)),  # a network of the library may have some
        )  # fmt: skip

    def suited_to(self, network: nn.Module, strategy: str) -> Processes:
        if strategy == "auto":
            sharing = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
            large = training_bytes(network) > SHARE * memory_of(self.device, sharing)
            strategy = "fsdp" if told_by_leader(int(large)) else "ddp"
        return Sharded(self.device) if strategy == "fsdp" else self

    def joining(self, model: nn.Module, join: bool) -> contextlib.AbstractContextManager[Any]:
        assert isinstance(model, DistributedDataParallel)
        return contextlib.nullcontext() if join else model.no_sync()

    def settle(self, loss: Tensor, stop: bool, save: bool) -> tuple[Tensor, bool, bool]:
        wishes = torch.tensor([float(stop), float(save and self.leads)], device=self.device)
        told = torch.cat([loss.detach().reshape(1).float(), wishes])
        dist.all_reduce(told)
        return told[0], bool(told[1] > 0), bool(told[2] > 0)

    def from_leader(self, load: Callable[[], Loaded | None]) -> Loaded | None:
        """Read by each where all share a disk; else sent by the leader, tensor by tensor."""
        if int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:
            return load()
        loaded = load() if self.leads else None
        tensors = loaded.tensors if loaded else {}
        outline: list[Any] = [
            loaded and (loaded.step, loaded.state, {k: (v.shape, v.dtype) for k, v in tensors.items()})
        ]
        dist.broadcast_object_list(outline)
        if outline[0] is None:
            return None
        step, state, shapes = outline[0]
        received = {
            name: self._sent(tensors[name] if self.leads else torch.empty(shape, dtype=dtype))
            for name, (shape, dtype) in shapes.items()
        }
        return loaded or Loaded(step, received, state)

    def _sent(self, tensor: Tensor) -> Tensor:
        """The leader's values in all processes, to the bit whatever their type; the same tensor, on the CPU."""
        octets = tensor.contiguous().reshape(-1).view(torch.uint8).to(self.device)
        dist.broadcast(octets, 0)
        return octets.cpu().view(tensor.dtype).reshape(tensor.shape)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


class Sharded(Joined):
    """Several processes that each hold a part of the weights, gradients and optimizer (FSDP2)."""

    strategy = "fsdp"

    def wrap(self, network: nn.Module) -> nn.Module:
        self.spread(network)
        return network

    def spread(self, network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    fully_shard(block)
        fully_shard(network)

    def joining(self, model: nn.Module, join: bool) -> contextlib.AbstractContextManager[Any]:
        cast(Any, model).set_requires_gradient_sync(join)
        return contextlib.nullcontext()

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], get_model_state_dict(network, options=_WHOLE))

    def load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        whole: Any = dict(weights)  # a copy: torch replaces the tensors in it by parts of them
        set_model_state_dict(network, whole, options=_SPREAD)

    def optimizer_state(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return cast(dict[str, Any], get_optimizer_state_dict(network, optimizer, options=_WHOLE).get("state", {}))

    def load_optimizer_state(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Tensor]]
    ) -> None:
        # Every process reads the same checkpoint, so each takes its part of it by itself.
        for name, parameter in network.named_parameters():
            if name in state:
                optimizer.state[parameter] = {key: _part_like(parameter, each) for key, each in state[name].items()}


def _part_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a tensor that belongs to a parameter; what is no tensor of its shape stays whole."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def told_by_leader(number: int) -> int:
    """The leader's number, in every process of the group."""
    told: list[int] = [number]
    dist.broadcast_object_list(told)
    return told[0]


def largest_of_all(number: int) -> int:
    """The largest number that a process of the group has, in every one of them."""
    found: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(found, number)
    return max(found)


def training_bytes(network: nn.Module) -> int:
    """What weights, gradients and Adam's two moments take, all in the type of the weights."""
    return sum(
        parameter.numel() * parameter.element_size() * (4 if parameter.requires_grad else 1)
        for parameter in network.parameters()
    )


def memory_of(device: torch.device, sharing: int) -> int:
    """Bytes of the device; of main memory the part of one of the processes that share it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // sharing


def meet() -> Joined:
    """Meet the other processes that the launcher started.

    The first meeting can fail while peers are still starting, so it is tried again with growing pauses. Raises
    RuntimeError when they never meet.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    _meet("nccl" if cuda else "gloo", device if cuda else None)
    return Joined(device)


def _meet(backend: str, device: torch.device | None) -> None:
    """Every attempt meets under a name of its own: what a failed one left in the store would mislead the next."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(host, port, is_master=False, timeout=MEETING)
    for attempt in range(ATTEMPTS):
        named = dist.PrefixStore(f"meeting-{restarts}-{attempt}", store)
        try:
            dist.init_process_group(
                backend, store=named, rank=rank, world_size=world, timeout=MEETING, device_id=device
            )
            dist.barrier()
            dist.distributed_c10d._set_pg_timeout(TIMEOUT)
            return
        except RuntimeError:
            with contextlib.suppress(RuntimeError, ValueError, AssertionError):
                dist.destroy_process_group()
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(2**attempt / 4)
