"""One model on many ranks, copied or spread.

module, Ranks  ->  module whose backward pass ends with the mean gradient where the optimiser wants it

Copied (DDP): every rank holds the whole model, and gradients travel in buckets while the backward pass goes on. Spread (FSDP2, `shard`):
each rank holds a part of every weight, gradient and optimiser state, and a block's weights are gathered when it computes. Checkpoints
hold whole tensors in either form, so a run may go on in the other one, or on another number of ranks; nothing needs to be unpickled.
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
    """DDP around the module, or the module itself spread in place by FSDP2; on one rank the module as it is."""
    if ranks.world_size == 1:
        return module
    return _spread(module, ranks) if shard else _copied(module, ranks)


def _copied(module: nn.Module, ranks: Ranks) -> nn.Module:
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    # The buffers are tables that every rank computes alike; the option to leave them be has a new name from torch 2.13 on.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    still: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    split = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **still)
    if ranks.device.type == "cpu":
        split.register_comm_hook(None, distributed.mean_in_rank_order)
    return split


def _spread(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Every block is a unit of its own, and what is left another: two blocks' weights are whole at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for block in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if hasattr(module, "reconstruct"):  # the pictures of stage 1 run the model in another way than by calling it
        register_fsdp_forward_method(module, "reconstruct")
    return module


@contextlib.contextmanager
def unsynchronised(module: nn.Module) -> Iterator[None]:
    """Around a micro-batch that is not the last of its step: its gradients stay on the rank and add up."""
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


def gather(module: nn.Module) -> None:
    """Make a spread module whole on every rank for good, for evaluation; every rank calls it."""
    for unit in _units(module):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def _units(module: nn.Module) -> list["FSDPModule"]:
    """What FSDP2 holds of the module; none where it is not spread."""
    if not hasattr(module, "unshard"):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def whole(held: Any, *, keep: bool = True) -> Any:
    """The same nested dictionaries and lists with whole tensors in the place of spread ones; every rank calls it.

    A rank that does not `keep` them takes part in the exchange and gets None for those tensors.
    """
    if hasattr(held, "full_tensor"):
        tensor = held.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(held, dict):
        return {name: whole(value, keep=keep) for name, value in held.items()}
    if isinstance(held, list):
        return [whole(value, keep=keep) for value in held]
    return held


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held: this rank's part of it where `like` is spread, without any exchange."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up a saved state with whole tensors, each held as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {
        index: {
            name: part_of(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": held})
