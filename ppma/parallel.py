"""One model on many ranks: every rank has a copy, and the gradients of all are averaged before a step.

module, Ranks  ->  module whose backward pass ends with the mean gradient on every rank
"""

import contextlib
import inspect
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ppma import distributed
from ppma.distributed import Ranks


def over_ranks(module: nn.Module, ranks: Ranks) -> nn.Module:
    """DDP around the module where there is more than one rank. Gradients travel in buckets while the backward pass goes on."""
    if ranks.world_size == 1:
        return module
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    # The buffers are tables that every rank computes alike; the option to leave them be has a new name from torch 2.13 on.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    still: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    split = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **still)
    if ranks.device.type == "cpu":
        split.register_comm_hook(None, distributed.mean_in_rank_order)
    return split


def unsynchronised(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Around a micro-batch that is not the last of its step: its gradients stay on the rank and add up."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()
