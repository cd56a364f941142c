"""timm, importable beside a CPU-only torch. Every import of timm in the project goes through this module.

timm imports torchvision, whose wheel links CUDA libraries. Beside a CPU build of torch its import dies with "operator
torchvision::nms does not exist": the fake kernels that it registers for nms name a schema which only its compiled
library defines. With the two schemas defined first, transforms and model creation work; only torchvision's own
compiled operators do not, and they say so when called. Where torchvision imports by itself nothing is touched, and a
failure of any other kind is raised as it is.
"""

import importlib
import sys
from typing import Any

import torch

_SCHEMAS: list[torch.library.Library] = []  # a Library withdraws its operators when it is collected


def ensure_torchvision() -> bool:
    """Import torchvision, defining its missing schemas if they alone are in the way. True when they were needed."""
    try:
        importlib.import_module("torchvision")
        return bool(_SCHEMAS)
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.append(library)
    importlib.import_module("torchvision")
    return True


def ensure_detection() -> bool:
    """Make torchvision's detection models run without its compiled operators, on the CPU. True when that was needed.

    Its RoIAlign has a plain form of its own, which it compiles when it may; non-maximum suppression has none, so it gets one.
    """
    ensure_torchvision()
    extension: Any = importlib.import_module("torchvision.extension")
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    if extension._has_ops():
        return False
    boxes.nms = plain_nms
    return True


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """What torchvision.ops.nms returns: boxes (N, 4) that overlap no better one by more than the threshold, best first."""
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
