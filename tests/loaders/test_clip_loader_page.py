"""Every example of docs/loader.md runs, and other libraries' checkpoints keep the position of a ClipLoader."""

import gc
import re
import warnings
from pathlib import Path

import pytest
import torch

import ppma

PAGE = Path(__file__).resolve().parents[2] / "docs/loader.md"
SMALL = {"frames": 2, "size": 16, "short_side": 16, "window_seconds": 1.0, "workers": 1}


@pytest.fixture(autouse=True)
def world(tmp_path, clip_tree, probe_here, monkeypatch):
    """A folder with `videos`; torchvision is made importable."""
    from ppma.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(clip_tree)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
        yield
    gc.collect()  # Lightning's cycles hold loaders


def test_every_example_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    names, missing = {}, []
    for block in blocks:
        try:
            exec(block.replace('"videos", batch_size=4)', '"videos", batch_size=12, workers=1)'), names)
        except ModuleNotFoundError as error:
            missing.append(error.name)
    names["loader"].close()
    assert len(blocks) == 5 and names["clips"].shape == (12, 3, 16, 224, 224)
    assert torch.load("last.pt")["loader"]["epoch"] == 1
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    assert names["trainer"].global_step == 6 and Path("checkpoint").is_dir()


def ids(batches):
    return [batch.sample_id_B.tolist() for batch in batches]


def test_accelerate_keeps_the_position():
    accelerate = pytest.importorskip("accelerate")
    with ppma.ClipLoader("videos", batch_size=4, **SMALL) as loader:
        accelerator = accelerate.Accelerator(cpu=True)
        accelerator.register_for_checkpointing(loader)
        flow = iter(loader)
        next(flow)
        accelerator.save_state("kept")
        rest = ids(flow)
        accelerator.load_state("kept")
        assert ids(loader) == rest and len(rest) == 2


def test_lightning_keeps_the_position():
    lightning = pytest.importorskip("lightning")

    class Seen(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, index):
            self.seen.append(batch)
            return self.weight * 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters())

    def trainer(steps):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(
            max_steps=steps, accelerator="cpu", use_distributed_sampler=False, enable_checkpointing=False, **quiet
        )

    with ppma.ClipLoader("videos", batch_size=4, **SMALL) as loader:
        whole, first, then = Seen(), Seen(), Seen()
        trainer(5).fit(whole, loader)
    with ppma.ClipLoader("videos", batch_size=4, **SMALL) as loader:
        stopped = trainer(2)
        stopped.fit(first, loader)
        stopped.save_checkpoint("last.ckpt")
    with ppma.ClipLoader("videos", batch_size=4, **SMALL) as loader:
        trainer(5).fit(then, loader, ckpt_path="last.ckpt")
    assert ids(first.seen + then.seen) == ids(whole.seen) and len(whole.seen) == 5
