"""DDP and FSDP2 train alike and resume each other, and gradients are exchanged during the backward pass."""

import contextlib
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from processes import on_ranks
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.mae import MaskedAutoencoder
from ppma.training import compute, distributed, parallel, tasks
from ppma.training.tasks import ClassifyTask, MaeTask


class Cut(Exception):
    pass


def run(made, stop_at=None):
    """Train from the newest checkpoint to the end, or to a step before which the run is cut; return the weights."""
    step = made.train_step

    def cut(batch):
        if made.step == stop_at:
            raise Cut
        return step(batch)

    made.train_step = cut
    made.restore()
    with contextlib.suppress(Cut):
        tiny.loop(made)
    return {name: parallel.full_tensor(value) for name, value in made.model.state_dict().items()}


def apart(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def train_sharded(ranks, folder, compiled):
    report = {}
    for name, more in (("mae_nohuman", {"accumulate": 2, "pictures_every": 5}), ("align_nohuman_synthetic", {})):
        base = tiny.shrink(name)
        optim = replace(base.optim, epochs=2, clip_grad=1e-2 if name.startswith("mae") else None)
        more |= {"vit": replace(base.vit, recompute=True, drop_path=0.5), "optim": optim, "checkpoint_every": 3}
        trainer = partial(tiny.trainer, name, ranks=ranks, resume=True, **more)
        copied, folder_of_shards = run(trainer(folder=folder / f"{name}-copied")), folder / f"{name}-sharded"
        made = trainer(folder=folder_of_shards, shard=True)
        held = sum(p.to_local().numel() for p in made.model.parameters())
        report[name] = {"share": held / sum(p.numel() for p in made.model.parameters())}
        report[name]["apart"] = apart(copied, run(made, stop_at=5))  # it has a checkpoint of step 3
        run(trainer(folder=folder_of_shards, shard=True), stop_at=7)
        report[name]["resumed"] = apart(copied, run(trainer(folder=folder_of_shards)))
        if compiled and name.startswith("mae"):
            torch.compile = partial(torch.compile, backend="aot_eager")
            report["compiled"] = apart(copied, run(trainer(folder=folder / "compiled", shard=True, compile="on")))
            report["graphs"] = counters["stats"]["unique_graphs"]
    parallel.unshard(made.model)
    if ranks.is_main:  # one rank alone: an unsharded model needs no exchange
        frames = torch.randint(0, 256, (2, tiny.FRAMES, tiny.SIZE, tiny.SIZE, 3), dtype=torch.uint8)
        with torch.no_grad():
            report["logits"] = list(made.model.eval().logits(frames, next(iter(made.model.label_spaces))).shape)
    return report


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fsdp2_trains_as_ddp(compiled, tmp_path):
    """With recomputation, accumulation, clipping and pictures; interrupted, resumed, resumed under DDP, then tested by one rank."""
    report = on_ranks(2, train_sharded, tmp_path, tmp_path, compiled)[0]
    if compiled:  # a graph for the blocks of the encoder, one for the decoder's, each in training and for pictures
        assert report["compiled"] < 1e-10 and report["graphs"] == 4, report
    for name in ("mae_nohuman", "align_nohuman_synthetic"):
        assert report[name]["apart"] > 1e-4, "it was interrupted, so it differs from the complete run"
        assert report[name]["resumed"] < 1e-10, report  # float64: sums in another order
        assert report[name]["share"] < 0.6, report
    assert report["logits"] == [2, 4]


@pytest.mark.parametrize("world_size", [4, 8])
@pytest.mark.parametrize(("name", "kind"), [("mae_nohuman", MaeTask), ("align_nohuman_synthetic", ClassifyTask)])
def test_ranks_that_share_clips_train_on_them_as_one_rank_does(name, kind, world_size, monkeypatch):
    """A batch is two clips of four views, or two groups of four rows that mix; each rank takes the loss of its share."""
    monkeypatch.setattr(tasks, "ClipStream", tiny.MadeClips)
    config = tiny.shrink(name)
    config = replace(config, loader=replace(config.loader, views=4 if kind is MaeTask else 1))
    task = kind(config, [tiny.source(source) for source in config.sources])
    task.model.double().train()

    def gradients(rank, world_size):
        ranks = replace(tiny.ALONE, rank=rank, world_size=world_size)
        with task.stream(ranks, (0, 0)) as stream:
            batch = next(iter(stream))
        return torch.autograd.grad(task.model(*task.inputs(batch)), list(task.model.parameters()))

    of_ranks = [gradients(rank, world_size) for rank in range(world_size)]
    for whole, *shares in zip(gradients(0, 1), *of_ranks, strict=True):
        torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=1e-9, atol=1e-13)


def test_one_rank_has_nothing_to_shard():
    module = torch.nn.Linear(2, 2)
    assert parallel.over_ranks(module, tiny.ALONE, shard=True) is module


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "--precision", "fp16"], "shard"),
        (["--compile", "graphs", "--shard"], "graphs"),
        (["--compile", "graphs", "--accumulate", "2"], "graphs"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        resolve("mae_nohuman", flags)


def test_graphs_need_a_gpu():
    with pytest.raises(InputError, match="the device is cpu"):
        compute.compile_mode("graphs", torch.device("cpu"))
    assert [compute.compile_mode("auto", torch.device(kind)) for kind in ("cpu", "cuda")] == ["off", "on"]


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_travel_while_the_compiled_backward_pass_goes_on(recompute, monkeypatch, tmp_path):
    """The graph is cut where a bucket ends, so that the first bucket is on its way before the last piece is computed."""
    seen, mean = [], distributed.mean_in_rank_order

    def noting(what):
        def compiler(graph, _):
            return make_boxed_func(lambda *given: (seen.append(what), graph(*given))[1])

        return compiler

    def travel(state, bucket):
        seen.append("bucket")
        return mean(state, bucket)

    backend = aot_autograd(fw_compiler=noting("forward"), bw_compiler=noting("backward"))
    monkeypatch.setattr(compute.torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(parallel, "DistributedDataParallel", partial(parallel.DistributedDataParallel, bucket_cap_mb=1))
    monkeypatch.setattr(parallel.distributed, "mean_in_rank_order", travel)
    vit = ViTConfig(width=192, depth=3, heads=4, size=48, frames=4, recompute=recompute)
    model = MaskedAutoencoder(vit, MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=2))
    clip, keys = torch.zeros(2, 4, 48, 48, 3, dtype=torch.uint8), torch.arange(2)
    model(clip, keys).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        split = parallel.over_ranks(model, replace(tiny.ALONE, world_size=2))
        compiled = compute.compiled(split)
        for _ in range(2):  # DDP rebuilds its buckets after the first step
            model.zero_grad()
            seen.clear()
            compiled(clip, keys).backward()
    finally:
        dist.destroy_process_group()
    assert seen.count("bucket") > 2 and seen.index("bucket") < len(seen) - 1 - seen[::-1].index("backward"), seen
    for got, stated in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(got.grad, stated, rtol=1e-5, atol=1e-7)  # float32, sums in another order


@pytest.mark.cuda
def test_cuda_graphs_change_no_loss(tmp_path):
    """Twelve steps of stage 1, compiled with and without."""
    losses = {}
    for mode in ("on", "graphs"):
        device = torch.device("cuda", torch.cuda.current_device())
        ranks, how = replace(tiny.ALONE, device=device), {"device": "cuda", "precision": "bf16", "compile": mode}
        trainer = tiny.trainer("mae_nohuman", tmp_path / mode, ranks, **how)
        losses[mode] = []
        with trainer.task.stream(ranks, (0, 0)) as stream:
            for batch, _ in zip(stream, range(12), strict=False):
                on_gpu = replace(batch, frames_BTHWC=batch.frames_BTHWC.to(device), key_B=batch.key_B.to(device))
                before = trainer.loss_sum.item()
                trainer.train_step(on_gpu)
                losses[mode].append(trainer.loss_sum.item() - before)
    # bf16 products, which other kernels may add in another order
    assert losses["graphs"] == pytest.approx(losses["on"], rel=1e-2)
