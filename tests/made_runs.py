"""Finished runs made without training: folders as `ppma train` leaves them, and the listing of a study over them."""

import hashlib
import json
from pathlib import Path
from unittest import mock

import numpy as np

from ppma.config.run import RunConfig
from ppma.training import seal


def scores(right_V: np.ndarray, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(scores_VC, label_V) in which exactly the given videos are right."""
    label_V = np.arange(len(right_V)) % classes
    scores_VC = rng.random((len(right_V), classes)).astype(np.float32)
    rows = np.arange(len(right_V))
    scores_VC[rows, label_V] = np.where(right_V, 2.0, 0.5)
    scores_VC[rows, (label_V + 1) % classes] = np.where(right_V, scores_VC[rows, (label_V + 1) % classes], 1.5)
    return scores_VC, label_V


def tested(
    folder: Path,
    right_V: np.ndarray,
    *,
    seed: int = 0,
    dataset: str = "made",
    init: Path | None = None,
    classes: int = 8,
    draws: int = 1,
) -> Path:
    """A sealed probe that got these videos right, whole draws one after another; `init` is a run of `trained`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:4]))
    scores_VC, label_V = scores(right_V, classes, rng)
    videos = np.array([f"clips/{i % (len(right_V) // draws):05d}.mp4" for i in range(len(right_V))])
    np.savez_compressed(folder / "scores.npz", video=videos, scores=scores_VC, label=label_V)
    top5 = float(((scores_VC >= scores_VC[np.arange(len(label_V)), label_V][:, None]).sum(axis=1) <= 5).mean())
    result = {
        "dataset": dataset, "split": "val", "protocol": "probe, 2 windows x 3 crops", "seed": seed, "n_videos": len(right_V),
        "top1": float(right_V.mean()), "top5": top5, "draws": draws,
        "ci95": {"top1": [0.0, 1.0], "top5": [0.0, 1.0]}, "manifest_sha256": "0" * 64,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    _common(folder, "probe", seed, init)
    start = seal.read(init).weights if init else None
    seal.write(folder, manifests={f"{dataset}.train": "0" * 64}, init=start, seconds=12.5)
    return folder


def trained(
    folder: Path, *, seed: int = 0, init: Path | None = None, seconds: float = 3600.0, recipe: str = "mae_nohuman"
) -> Path:
    """A sealed run that ended with some weights."""
    (folder / "checkpoints" / "latest").mkdir(parents=True)
    (folder / "checkpoints" / "latest" / seal.MODEL).write_bytes(str(folder).encode())
    _common(folder, recipe, seed, init)
    seal.write(folder, manifests={}, init=seal.read(init).weights if init else None, seconds=seconds)
    return folder


def _common(folder: Path, recipe: str, seed: int, init: Path | None) -> None:
    start = init / "checkpoints" / "latest" if init else None
    config = RunConfig(recipe=recipe, phase="classify", sources=("made",), seed=seed, init=start)
    (folder / "config.json").write_text(config.to_json())
    start = {"world_size": 1, "device": "cpu", "command": ["ppma", "train", recipe]}
    (folder / "environment.json").write_text(json.dumps([start]))
    (folder / "metrics.jsonl").write_text("")


@mock.patch("os.fsync", new=lambda _: None)  # made runs need not outlive a power cut
def study(
    out: Path,
    rights: dict[tuple[str, str, str, int], np.ndarray],
    *,
    compare: str = "",
    humans: str = "",
    classes: int = 8,
) -> Path:
    """A study whose runs got these videos right, by (method, protocol, data set, seed). Every method but `random` has a pre-training."""
    rows, chains = [], {}
    for (method, protocol, dataset, seed), right_V in rights.items():
        if method != "random" and (method, seed) not in chains:
            chains[method, seed] = trained(out / "runs" / f"{method}-s{seed}", seed=seed, seconds=3600.0 * (1 + seed))
        start = chains.get((method, seed))
        folder = out / "runs" / f"{method}.{protocol}.{dataset}-s{seed}"
        tested(folder, right_V, seed=seed, dataset=dataset, init=start, classes=classes)
        chain = [f"runs/{start.name}"] if start else []
        row = {"method": method, "protocol": protocol, "dataset": dataset, "seed": seed}
        rows.append(row | {"folder": f"runs/{folder.name}", "chain": chain, "starts": chain})

    def names(place: int) -> list[str]:
        return list(dict.fromkeys(key[place] for key in rights))

    facts = {
        "name": "made", "title": "A made <study> & more", "compare": compare, "humans": humans, "seeds": sorted({key[3] for key in rights}),
        "methods": {name: f"Method {name}" for name in names(0)}, "protocols": {name: f"Protocol {name}" for name in names(1)},
        "datasets": names(2), "rows": rows, "commands": {row["folder"]: ["ppma", "train", "probe"] for row in rows},
    }  # fmt: skip
    (out / "made.study.json").write_text(json.dumps(seal.signed(facts)))
    return out
