"""Make timm importable with a CPU-only torch. Every import of timm in the project goes through this module.

timm imports torchvision, whose wheel is linked to CUDA libraries. With a CPU build of torch its import fails with
"operator torchvision::nms does not exist", because torchvision registers fake kernels for operators that only its
compiled library defines. Defining the two schemas first makes transforms and model creation work; compiled operators
still fail when called. A working torchvision is left alone, and any other error passes.
"""

import importlib
import sys
from typing import Any

import torch

_SCHEMAS: list[torch.library.Library] = []  # a Library removes its operators when it is garbage-collected


def ensure_torchvision() -> bool:
    """Import torchvision, after defining its missing schemas if needed. Return True if they were."""
    try:
        importlib.import_module("torchvision")
        return bool(_SCHEMAS)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # remains of the failed import
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.append(library)
    importlib.import_module("torchvision")
    return True


def ensure_detection() -> bool:
    """Make torchvision's detection models work on a CPU without its compiled operators. Return True if that was needed.

    torchvision has a plain RoIAlign; non-maximum suppression is replaced by `plain_nms`.
    """
    ensure_torchvision()
    extension: Any = importlib.import_module("torchvision.extension")
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    if extension._has_ops():
        return False
    boxes.nms = plain_nms
    return True


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return indices as torchvision's nms: best first, without boxes (N, 4) that overlap a better one too much."""
    order_N = scores.argsort(descending=True, stable=True)
    boxes_N4 = boxes[order_N].double()
    sides_NN2 = torch.minimum(boxes_N4[:, None, 2:], boxes_N4[:, 2:]) - torch.maximum(
        boxes_N4[:, None, :2], boxes_N4[:, :2]
    )
    both_NN = sides_NN2.clamp(min=0).prod(-1)
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(-1)
    over_NN = both_NN > iou_threshold * (area_N[:, None] + area_N - both_NN)
    kept_N = torch.ones(len(order_N), dtype=torch.bool, device=boxes.device)
    for i in range(len(order_N)):
        if kept_N[i]:
            kept_N[i + 1 :] &= ~over_NN[i, i + 1 :]
    return order_N[kept_N]


ensure_torchvision()

import timm  # noqa: E402
import timm.layers  # noqa: E402
import timm.models  # noqa: E402

__all__ = ["ensure_detection", "ensure_torchvision", "plain_nms", "timm"]
