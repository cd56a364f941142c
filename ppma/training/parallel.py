"""One model on many ranks: copied by DDP, or sharded by FSDP2.

    module, Ranks  ->  module whose backward pass leaves the mean gradient where the optimizer needs it

With DDP every rank holds the whole model, and gradients are exchanged in buckets during the backward pass. With FSDP2
(`shard`) each rank holds a shard of every weight, gradient and optimizer state, and gathers the weights of a block for
its computation. Checkpoints hold full tensors either way, so a run may resume in the other form or on a different
number of ranks.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppma.models.vit import Block
from ppma.training import distributed
from ppma.training.distributed import Ranks

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def over_ranks(module: nn.Module, ranks: Ranks, *, shard: bool = False) -> nn.Module:
    """Return the module wrapped by DDP, or itself after FSDP2 has sharded it in place; unchanged on one rank."""
    if ranks.world_size == 1:
        return module
    return _shard(module, ranks) if shard else _copy(module, ranks)


def _copy(module: nn.Module, ranks: Ranks) -> nn.Module:
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Buffers are tables that every rank computes alike. torch 2.13 renamed the option that leaves them alone.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    no_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    wrapped = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **no_buffers)
    if ranks.device.type == "cpu":
        wrapped.register_comm_hook(None, distributed.mean_in_rank_order)
    return wrapped


def _shard(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Shard every block as a unit, and the rest as another, so that at most two blocks are gathered at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if hasattr(module, "reconstruct"):  # the pictures of stage 1 call this method instead of the module
        register_fsdp_forward_method(module, "reconstruct")
    return module


@contextlib.contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Accumulate gradients on each rank without an exchange, for all but the last micro-batch of a step."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
        return
    units = _units(module)
    for unit in units:
        unit.set_requires_gradient_sync(False, recurse=False)
    yield
    for unit in units:
        unit.set_requires_gradient_sync(True, recurse=False)


def unshard(module: nn.Module) -> None:
    """Gather a sharded module on every rank for good, for evaluation. Every rank calls it."""
    for unit in _units(module):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def _units(module: nn.Module) -> list["FSDPModule"]:
    """Return the parts of the module that FSDP2 shards as units; none if it is not sharded."""
    if not hasattr(module, "unshard"):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full, and any other as it is. Every rank calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def state_dicts(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the states of module and optimizer, with the tensors that they train on.

    Optimizer state is keyed by parameter name, so it fits any number of ranks.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict

    return get_state_dict(module, optimizer)


class HostCopy:
    """A copy of a state in host memory, which is allocated once and pinned for a GPU, so that the copy is fast."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, state: Any, ranks: Ranks) -> Any:
        """Return a copy of the state with full tensors, on rank 0 only; the next call writes to the same tensors.

        Every rank calls it, because a sharded tensor is gathered, one at a time.

        Args:
            state: Tensors and other values, in dictionaries, lists and tuples.
            ranks: The processes.
        """
        copied = self._take(state, "", ranks.is_main)
        if ranks.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return copied

    def _take(self, value: Any, name: str, keep: bool) -> Any:
        if isinstance(value, dict):
            return {key: self._take(item, f"{name}/{key}", keep) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._take(item, f"{name}/{number}", keep) for number, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        tensor = full_tensor(value)
        if not keep:
            return None
        if name not in self._buffers:
            self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._buffers[name].copy_(tensor, non_blocking=True)


def load_model(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load full tensors into a module; each rank keeps its shard."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict

    set_model_state_dict(module, weights, options=_full())


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer state of `state_dicts`; each rank keeps its shard."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    set_optimizer_state_dict(module, optimizer, state, options=_full())


def _full() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True)
