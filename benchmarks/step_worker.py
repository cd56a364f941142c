"""Run one implementation of the training step in its own process, started and controlled by `train_step.py`.

    "30"   ->  30 steps and one synchronization  ->  {"ms": ..., "cpu_s": ...} per step
    "end"  ->  facts about the whole process

Warm-up steps, which allocate, compile and choose kernels, run before the first answer and are not counted: one on a
CPU, three on a GPU. `ours` is the step of `ppma train` itself (`training.make_trainer`).
"""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks import published
from benchmarks.training import CLASSES, made_batch, make_trainer, run_config
from ppma.config.run import Compile, RunConfig
from ppma.kernels.timing import synchronize
from ppma.models import flops
from ppma.models.masking import random_masking
from ppma.training.trainer import Trainer

RATE = 1e-5
Step = Callable[[], object]
COMPILE: dict[str, Compile] = {"ours": "auto", "ours_eager": "off", "ours_compiled": "on", "ours_graphs": "graphs"}
"""Variants of our step and their --compile setting."""


class Setting:
    """The clips of a case, on its device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.phase, self.batch, self.vit, self.mae = config.phase, config.batch, config.vit, config.mae
        self.clips = made_batch(config, device)
        self.frames_BTHWC, self.key_B, self.label_B = self.clips.frames_BTHWC, self.clips.key_B, self.clips.label_B

    @property
    def trunk(self) -> dict:
        """Constructor arguments that both published models take."""
        vit = self.vit
        shape = {"width": vit.width, "depth": vit.depth, "heads": vit.heads, "mlp_ratio": vit.mlp_ratio}
        return shape | {"tokens": vit.tokens}

    def masked_BN(self) -> Tensor:
        """Return a mask that is True at hidden tokens."""
        _, masked_idx_BM = random_masking(self.key_B, self.vit.tokens, self.mae.mask_ratio)
        empty_BN = torch.zeros(self.batch, self.vit.tokens, dtype=torch.bool, device=self.device)
        return empty_BN.scatter(1, masked_idx_BM, True)

    @property
    def flops(self) -> float:
        """Floating-point operations of a step of the model, independent of the implementation."""
        one = flops.mae_flops(self.vit, self.mae) if self.phase == "mae" else flops.classifier_flops(self.vit, CLASSES)
        return 3 * self.batch * one


def ours(setting: Setting, implementation: str) -> Trainer:
    """Build our step: visible patches only, fused attention; on a GPU compiled, with bfloat16 products."""
    return make_trainer(setting.config, setting.device, compile=COMPILE[implementation])


def plain(setting: Setting, *, recompute: bool) -> tuple[nn.Module, tuple[Tensor, ...], torch.optim.Optimizer]:
    """Build the published step. Its loader delivers float32 clips, so making them is not part of the step."""
    clip_BCTHW = published.normalized(setting.frames_BTHWC)
    if setting.phase == "mae":
        mae = setting.mae
        decoder = {"decoder_width": mae.decoder_width, "decoder_depth": mae.decoder_depth}
        decoder |= {"decoder_heads": mae.decoder_heads}
        model: nn.Module = published.PublishedMAE(**decoder, recompute=recompute, **setting.trunk)
        inputs = (clip_BCTHW, setting.masked_BN())
    else:
        model = published.PublishedClassifier(classes=CLASSES, recompute=False, **setting.trunk)
        inputs = (clip_BCTHW, setting.label_B)
    model = model.to(setting.device)
    return model, inputs, torch.optim.AdamW(model.parameters(), lr=RATE)


def huggingface(setting: Setting) -> tuple[nn.Module, tuple[Tensor, ...], torch.optim.Optimizer]:
    """Build transformers' VideoMAE with the same shapes, used as documented."""
    from ppma.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()  # which transformers imports
    import transformers

    vit, mae = setting.vit, setting.mae
    config = transformers.VideoMAEConfig(
        image_size=vit.size, patch_size=vit.patch[1], num_frames=vit.frames, tubelet_size=vit.patch[0],
        hidden_size=vit.width, num_hidden_layers=vit.depth, num_attention_heads=vit.heads,
        intermediate_size=int(vit.width * vit.mlp_ratio), decoder_hidden_size=mae.decoder_width,
        decoder_num_hidden_layers=mae.decoder_depth, decoder_num_attention_heads=mae.decoder_heads,
        decoder_intermediate_size=int(mae.decoder_width * vit.mlp_ratio), num_labels=CLASSES,
    )  # fmt: skip
    clip_BTCHW = published.normalized(setting.frames_BTHWC).transpose(1, 2).contiguous()

    class Loss(nn.Module):
        """The loss as forward's result."""

        def __init__(self, model: nn.Module, second: str) -> None:
            super().__init__()
            self.model, self.second = model, second

        def forward(self, clip_BTCHW: Tensor, second: Tensor) -> Tensor:
            return self.model(clip_BTCHW, **{self.second: second}).loss

    if setting.phase == "mae":
        model = Loss(transformers.VideoMAEForPreTraining(config), "bool_masked_pos")
        inputs = (clip_BTCHW, setting.masked_BN())
    else:
        model = Loss(transformers.VideoMAEForVideoClassification(config), "labels")
        inputs = (clip_BTCHW, setting.label_B)
    model = model.to(setting.device).train()
    return model, inputs, torch.optim.AdamW(model.parameters(), lr=RATE)


def build(setting: Setting, implementation: str) -> tuple[Step, torch.dtype]:
    """Return a function that runs one step, and the dtype of its matrix products."""
    if implementation in COMPILE:
        trainer = ours(setting, implementation)
        return lambda: trainer.train_step(setting.clips), trainer.compute.autocast_dtype
    if implementation == "huggingface":
        (model, inputs, optimizer), products = huggingface(setting), torch.float32
    elif implementation in ("published", "published_without_recompute", "published_fp16"):
        model, inputs, optimizer = plain(setting, recompute=implementation != "published_without_recompute")
        products = torch.float16 if implementation == "published_fp16" else torch.float32
    else:
        raise SystemExit(
            f"no implementation {implementation!r}; there are {', '.join(COMPILE)}, published, published_without_recompute, "
            "published_fp16, huggingface"
        )
    scaler = torch.amp.GradScaler(setting.device.type, enabled=products == torch.float16)

    def step() -> None:
        with torch.autocast(setting.device.type, dtype=products, enabled=products != torch.float32):
            loss = model(*inputs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step, products


def peak_mb(device: torch.device) -> float:
    """Return peak memory: allocated on a GPU, resident on a CPU (Linux counts in KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(step: Step, device: torch.device, count: int) -> dict[str, float]:
    """Return elapsed milliseconds and CPU seconds (all threads) per step, over `count` steps between two
    synchronizations."""
    synchronize(device)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronize(device)
    return {"ms": 1000 * (time.perf_counter() - began) / count, "cpu_s": (time.process_time() - cpu) / count}


def main() -> None:
    """Answer requests until "end"."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    case = json.loads(sys.argv[1])
    implementation, threads = case.pop("implementation"), case.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    device = torch.device(case.pop("device"))
    gc.collect()
    baseline = peak_mb(device)
    setting = Setting(run_config(**case), device)
    step, products = build(setting, implementation)
    for number, word in enumerate(map(str.strip, sys.stdin)):
        try:
            for _ in range(0 if number else 3 if device.type == "cuda" else 1):
                step()
            answer = {} if word == "end" else timed(step, device, int(word))
        except torch.OutOfMemoryError as error:
            answer = {"failure": str(error).splitlines()[0]}
        if word == "end":
            answer = {"peak_memory_mb": peak_mb(device) - baseline, "step_flops": setting.flops}
            answer["peak_flops"] = flops.measured_peak_flops(device, products)
            answer |= {"precision": str(products).removeprefix("torch."), "threads": torch.get_num_threads()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if word == "end" or "failure" in answer:
            return


if __name__ == "__main__":
    main()
