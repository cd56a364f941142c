"""RunConfig: one training run, composed of the configs of its parts.

recipe  ->  RunConfig  <-  flags;   RunConfig  ->  `train`, config.json  ->  RunConfig
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ppma import __version__
from ppma.config.command import OutFolder, check_out
from ppma.config.errors import InputError, counted, reading, require, require_at_least
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, MAEConfig, OptimConfig, ViTConfig
from ppma.config.protocols import AttentiveConfig, FewShotConfig, GridConfig, KNNConfig, Mixing
from ppma.config.records import RecordError, restore

Phase = Literal["mae", "classify", "probe", "attentive", "knn", "few_shot"]
"""mae: stage 1; classify: the encoder runs in every step, with labels. In the others a frozen encoder runs once: probe
trains a head on cached features, attentive a query and a head on cached tokens, knn and few_shot have no training
loop."""
ENCODED_ONCE = ("probe", "attentive", "knn", "few_shot")
UNTRAINED = ("knn", "few_shot")
"""Phases whose runs have a result and no weights."""
Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]
Privacy = Literal["off", "strict"]
Compile = Literal["auto", "on", "graphs", "off"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The test of a classifier. Defaults are the paper's 2 x 3 views."""

    at_end: bool = False
    """Test on the run's first source after training."""
    split: str = "val"
    """Split to test on."""
    windows: int = 2
    """Temporal windows per video: two are its start and its end (paper: 2)."""
    crops: int = 3
    """Squares along the long side of a frame, 1 or 3 (paper: 3)."""
    last_window: Literal["end", "pytorchvideo"] = "end"
    """end: the last of several windows ends with the video; pytorchvideo: they start 1/N of the last possible start apart,
    as in its release 0.1.5, so that the second of two starts at half of it (published, Q9)."""
    average: Literal["softmax", "logits"] = "softmax"
    """What to average over the views of a video; logits: the raw outputs of the head (published, Q9)."""
    batch_clips: int = 16
    """Videos per batch of a rank; changes no result beyond rounding."""
    on_bad: Literal["fail", "mark"] = "fail"
    """fail: an undecodable video stops the evaluation; mark: it counts as wrong."""
    on_unknown_class: Literal["fail", "mark"] = "fail"
    """fail: refuse videos of a class that the head lacks, before the training; mark: they count as wrong."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "evaluation.", "windows", "batch_clips")
        require(self.crops in (1, 3), f"evaluation.crops is {self.crops}; it must be 1 or 3")

    @property
    def protocol(self) -> str:
        """The views in words, for a result."""
        views = f"{self.windows} windows x {self.crops} crops"
        placed = {"end": "", "pytorchvideo": ", windows as in pytorchvideo 0.1.5"}[self.last_window]
        return views + placed + {"softmax": "", "logits": ", logits averaged"}[self.average]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, resolved."""

    recipe: str
    """Recipe that the config comes from."""
    phase: Phase
    """What to train."""
    sources: tuple[str, ...]
    """Names in the data catalog, split `train`."""
    weights: tuple[float, ...] | None = None
    """Share of each source, in any unit; None: in proportion to their lengths."""
    data: Path | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
    run_dir: Path = Path("runs/run")
    """Run folder: config, metrics, TensorBoard events, checkpoints."""
    init: Path | None = None
    """Checkpoint, run folder or .safetensors file to take the encoder from (default: train from scratch)."""
    average: tuple[Path, ...] | None = None
    """Two or more encoders, given as for --init, to average with learned weights (recipe adaptive_average)."""
    mixing: Mixing = "model"
    """Learn one weight of that average per encoder (model), or per encoder and tensor (tensor)."""
    mix_norm: bool = False
    """Mix the final LayerNorms of that average like the other tensors, as published (Q7), instead of learning one."""
    features: OutFolder | None = None
    """Folder of cached features of frozen encoders (default: $PPMA_FEATURES, else `features` next to the run folder)."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder, if there is one."""
    allow_changed_data: bool = False
    """Resume although the manifests are not those of the checkpoint, and report what changed."""
    privacy: Privacy = "off"
    """strict: refuse real people, unknown origin, missing licenses, clips without a passed audit, and initial weights
    trained on any of these (docs/privacy.md)."""
    policy: Path | None = None
    """Least strength of an audit under --privacy strict (default: `privacy.toml` next to data.toml, else built-in values)."""
    trust: Path | None = None
    """Public keys of OpenSSH, one a line: under --privacy strict, every audit must be signed with one of them."""
    seed: int = 0
    """Seed of all random numbers and of the initial weights."""
    batch: int = 128
    """Global batch in rows (clips x views), over all ranks and micro-batches."""
    accumulate: int = 1
    """Micro-batches per step, whose gradients are summed."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over the ranks (FSDP2) instead of copying them (DDP), for models too
    large for one GPU. Same numbers, more traffic; checkpoints hold full tensors either way."""
    vit: ViTConfig = field(default_factory=ViTConfig)
    """Encoder."""
    mae: MAEConfig = field(default_factory=MAEConfig)
    """Masking and decoder (phase mae)."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Heads, mixing, freezing (phases classify and probe)."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """From videos to views."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedule."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Test of a classifier."""
    grid: GridConfig = field(default_factory=GridConfig)
    """Rates to choose from (phase probe)."""
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    """Attention pooling (phase attentive)."""
    knn: KNNConfig = field(default_factory=KNNConfig)
    """Nearest neighbors (phase knn)."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    """Few clips per class (phase few_shot)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    precision: Precision = "auto"
    """Type of the matrix products; auto: bf16 autocast on a GPU, fp32 on a CPU. Weights are fp32, or fp64 with fp64."""
    compile: Compile = "auto"
    """torch.compile of the step; auto: on a GPU; graphs: with CUDA graphs, for small models and batches that wait for
    the host (`ours_graphs` of benchmarks/train_step.py shows whether yours does). Results are cached in
    ~/.cache/ppma/compiled, or where $XDG_CACHE_HOME or $TORCHINDUCTOR_CACHE_DIR point."""
    log_every: int = 20
    """Steps between two lines of metrics; nothing is read from the device in between."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end and at a signaled stop."""
    checkpoint_minutes: float | None = None
    """Minutes between two checkpoints, where no step of --checkpoint-every comes first (default: from what a save costs and
    how often a node fails, by Young's formula)."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    pictures_every: int = 1000
    """Steps between two sets of pictures in TensorBoard; 0: none."""
    hang_seconds: float = 1800.0
    """Seconds without a finished step or feature batch after which a process logs all stacks and exits with 75."""

    def __post_init__(self) -> None:
        counts = ("batch", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints", "hang_seconds")
        require_at_least(1, self, "", *counts)
        minutes = self.checkpoint_minutes
        require(minutes is None or minutes > 0, f"checkpoint_minutes is {minutes}; it must be above 0")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; it must be between 0 and {2**63 - 1}")
        for name in ("policy", "trust"):
            strict = getattr(self, name) is None or self.privacy == "strict"
            require(strict, f"--{name} goes with --privacy strict; add that flag")
        require(bool(self.sources), "sources is empty; name at least one source of the data catalog")
        vit, loader = self.vit, self.loader
        require(
            (vit.frames, vit.size) == (loader.frames, loader.size),
            f"the model takes {vit.frames} frames of {vit.size} pixels, the loader gives {loader.frames} of {loader.size}; "
            "set both with --frames and --size",
        )
        unit = loader.views * self.accumulate
        clips = f"{self.accumulate} micro-batches of clips with {loader.views} views"
        require(self.batch % unit == 0, f"batch {self.batch} does not divide into {clips}; use a multiple of {unit}")
        encoded_once = self.phase in ENCODED_ONCE
        require(
            not (encoded_once and self.classifier.token_drop),
            f"classifier.token_drop is {self.classifier.token_drop}; it must be 0 in a probe, which takes features of whole clips",
        )
        shards = not self.shard or not (encoded_once or self.average or self.precision == "fp16")
        require(shards, "--shard is for phases mae and classify in bf16, fp32 or fp64; leave it out")
        votes = self.phase != "knn" or self.evaluation.average == "softmax"
        require(votes, "evaluation.average logits: knn averages votes, for it has no logits; use softmax")
        graphs = self.compile != "graphs" or not (self.shard or self.accumulate > 1)
        require(graphs, "--compile graphs excludes --shard and --accumulate; use --compile on, or leave those out")
        averages = self.average is None or (self.phase == "classify" and self.init is None)
        require(averages, "--average is for recipe adaptive_average, and replaces --init")
        fits = self.weights is None or len(self.weights) == len(self.sources)
        require(
            fits,
            f"weights {self.weights} must be one number for each of the {len(self.sources)} sources {self.sources}",
        )

    @property
    def starts(self) -> tuple[Path, ...]:
        """Checkpoints that the run starts from."""
        return (*(() if self.init is None else (self.init,)), *(self.average or ()))

    @property
    def batch_clips(self) -> int:
        """Clips per global batch."""
        return self.batch // self.loader.views

    @property
    def unit_rows(self) -> int:
        """Rows that a rank loads together: the views of a clip, and the rows that mix with each other."""
        mixes = self.phase == "classify" and self.classifier.mix.mixes
        return math.lcm(self.loader.views, self.classifier.mix.group if mixes else 1)

    def to_json(self) -> str:
        """Return the whole config as JSON, for `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Return the config that `to_json` wrote; settings that an older version did not know get their defaults.

        Raises:
            InputError: The text is not a config, or holds settings or values that this version does not know.
        """
        try:
            return restore(cls, json.loads(text))  # type: ignore[no-any-return]
        except json.JSONDecodeError as error:
            raise InputError(f"is not JSON ({error}); give the config.json of a run") from None
        except RecordError as error:
            raise InputError(
                f"{error} (this is ppma {__version__}); open the run with the ppma that made it (lineage.json names its version). "
                "Weights of other projects come in with `ppma convert`"
            ) from None


def read_config(folder: Path) -> RunConfig:
    """Return the config of a run folder; InputError names the file that is missing or cannot be read."""
    file = folder / "config.json"
    with reading(file, "the config of a run"):
        return RunConfig.from_json(file.read_text(encoding="utf-8-sig"))


FREE_ON_RESUME = {
    "run_dir", "data", "policy", "trust", "features", "resume", "allow_changed_data", "device", "compile", "log_every", "checkpoint_every",
    "checkpoint_minutes", "keep_checkpoints", "pictures_every", "shard", "hang_seconds", "evaluation", "vit.recompute",
    "loader.implementation", "loader.workers", "loader.prefetch_batches", "loader.read_ahead_batches", "loader.max_bad_fraction",
    "loader.stall_seconds",
}  # fmt: skip
"""Fields that a resumed run may change, because the result does not depend on them."""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


@cache
def defaults() -> dict[str, Any]:
    """Return the defaults of all fields, with dotted names."""
    return flat(json.loads(RunConfig(recipe="", phase="mae", sources=("any",)).to_json()))


def differences(config: RunConfig, saved: RunConfig) -> list[str]:
    """Return the changed fields that forbid resuming `saved` as `config`, as `name: saved -> asked`."""
    asked, before = (flat(json.loads(one.to_json())) for one in (config, saved))
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    return [
        f"{name}: {before[name]} -> {asked[name]}"
        for name in sorted(asked)
        if name not in FREE_ON_RESUME and not name.startswith(free) and asked[name] != before[name]
    ]


def check_run_folder(config: RunConfig) -> None:
    """Raise InputError if the run folder cannot be written, or holds another run, or this one and --resume is missing."""
    folder = config.run_dir
    check_out("--run-dir", folder, "folder")
    known = (folder / "config.json").exists()
    free = not known and not any((folder / "checkpoints").glob("step_*"))
    fix = "continue it with --resume, or use another --run-dir"
    require(free or config.resume, f"{folder} holds a run already; {fix}")
    if not known:
        return
    changed = differences(config, read_config(folder))
    why = f"{folder} was started with other settings ({'; '.join(changed[:5])}); resume it with the same ones"
    require(not changed, why)


def ranks_per_unit(config: RunConfig, ranks: int) -> int:
    """Return how many ranks share each unit of rows; 0 if the batch cannot be divided among so many ranks.

    A rank has whole units, the same number in every micro-batch. With more ranks than units, as many ranks load the same
    unit and each trains on its share of the rows.
    """
    units, rest = divmod(config.batch, config.accumulate * config.unit_rows)
    if rest == 0 and units % ranks == 0:
        return 1
    shared = ranks // units if rest == 0 and config.accumulate == 1 and ranks % units == 0 else 0
    return shared if shared and config.unit_rows % shared == 0 else 0


def check_ranks(config: RunConfig, ranks: int) -> None:
    """Raise InputError unless the batch can be divided among the ranks.

    Phases with a frozen encoder do not split the batch, so they take any number of ranks.
    """
    if config.phase in ENCODED_ONCE or ranks_per_unit(config, ranks):
        return
    accumulate, rows = config.accumulate, config.unit_rows
    unit = ranks * accumulate * rows
    what = f"of mix.group {config.classifier.mix.group}" if rows > config.loader.views else "views of a clip"
    parts = f"{ranks} ranks x {accumulate} micro-batches x {rows} rows ({what}) = {unit}"
    fitting = [count for count in range(1, config.batch + 1) if ranks_per_unit(config, count)]
    near = [max((n for n in fitting if n < ranks), default=0), min((n for n in fitting if n > ranks), default=0)]
    counts = " or ".join(str(count) for count in near if count)
    use = f"a multiple of {unit}" + (f", or {counts} ranks" if counts else "")
    raise InputError(f"{config.recipe}: batch {config.batch} is not divisible by {parts}; use {use}")


def check_clips(config: RunConfig, clips: int) -> None:
    """Raise InputError if the sources of a training hold fewer clips than a batch has rows: `clips` in all."""
    views = config.loader.views
    few = f"{', '.join(config.sources)}: {counted(clips, 'clip')} in all, fewer than a batch of {config.batch}"
    most = clips // views * views
    use = f"--batch {most} or less" if most else f"at least {counted(views, 'clip')}, the rows of the smallest batch"
    require(config.phase in UNTRAINED or clips >= config.batch, f"{few}; use {use}")
