"""A run as plain data: the parts' own configs, composed. Imports no torch, so a login node can resolve and print a recipe.

`recipes` makes RunConfigs, the command line changes fields of one, `train` runs it, and `config.json` in the run folder holds it resolved.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, MAEConfig, OptimConfig, ViTConfig
from ppma.config.protocols import AttentiveConfig, FewShotConfig, GridConfig, KNNConfig, Mixing

Phase = Literal["mae", "classify", "probe", "attentive", "knn", "few_shot"]
"""mae: stage 1; classify: everything with labels that runs the encoder every step; the others run a frozen encoder once. probe: a head on
cached features; attentive: a query and a head on cached tokens; knn, few_shot: no training loop."""
ENCODED_ONCE = ("probe", "attentive", "knn", "few_shot")
Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]
Privacy = Literal["off", "strict"]
Compile = Literal["auto", "on", "graphs", "off"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a classifier is tested. Defaults are the paper's 2 x 3 views."""

    at_end: bool = False
    """Test the run's first source when training is over."""
    split: str = "val"
    """Split that is tested."""
    windows: int = 2
    """Temporal windows of a video: two are its start and its end (paper: 2)."""
    crops: int = 3
    """Squares along the long side of a frame, 1 or 3 (paper: 3)."""
    batch_clips: int = 16
    """Videos tested at a time, over all ranks; changes no result."""
    on_bad: Literal["fail", "mark"] = "fail"
    """What an undecodable video does: stop the evaluation with its name, or count as wrong."""

    def __post_init__(self) -> None:
        for name in ("windows", "batch_clips"):
            if getattr(self, name) < 1:
                raise InputError(f"evaluation.{name} is {getattr(self, name)}; it must be at least 1")
        if self.crops not in (1, 3):
            raise InputError(f"evaluation.crops is {self.crops}; it must be 1 or 3")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, resolved. `recipes` says where the numbers come from."""

    recipe: str
    """Name of the recipe this came from."""
    phase: Phase
    """What is trained."""
    sources: tuple[str, ...]
    """Names in the data catalog, split `train`."""
    weights: tuple[float, ...] | None = None
    """Share of each source, in any unit; none: in proportion to their lengths."""
    data: Path | None = None
    """The data catalog; none: $PPMA_DATA, else ./data.toml."""
    run_dir: Path = Path("runs/run")
    """Run folder: config, metrics, TensorBoard events, checkpoints."""
    init: Path | None = None
    """Checkpoint, run folder or .safetensors file whose encoder the run starts from; none: from scratch."""
    average: tuple[Path, ...] | None = None
    """Two or more of those: the encoder is their weighted mean, the weights learned with the head (recipe adaptive_average)."""
    mixing: Mixing = "model"
    """What has a weight of its own in that mean: each model, or each tensor of each model."""
    features: Path | None = None
    """Folder of cached features, which all runs share while their encoder is frozen; none: $PPMA_FEATURES, else `features` beside the
    run folder."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder, where there is one."""
    privacy: Privacy = "off"
    """strict: refuse rows of people, of unknown origin, without a licence, or without a passed audit of just these files, and an initial
    checkpoint that saw any, or of which that is not known (docs/privacy.md)."""
    seed: int = 0
    """Seed of every draw and of the initial weights."""
    batch: int = 128
    """Global batch in rows, clips x views, over all ranks and accumulation steps."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed before a step."""
    shard: bool = False
    """Spread weights, gradients and optimiser state over the ranks (FSDP2) rather than copy them (DDP), for models that one GPU cannot
    hold. The numbers are the same, the traffic is more; checkpoints hold whole tensors either way."""
    vit: ViTConfig = field(default_factory=ViTConfig)
    """Shape of the encoder."""
    mae: MAEConfig = field(default_factory=MAEConfig)
    """Masking and decoder (phase mae)."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Heads, mixing, freezing (phases classify and probe)."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """From videos to views."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedule."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The test of a classifier."""
    grid: GridConfig = field(default_factory=GridConfig)
    """Rates to choose from (phase probe)."""
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    """Pooling by attention (phase attentive)."""
    knn: KNNConfig = field(default_factory=KNNConfig)
    """Nearest neighbours (phase knn)."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    """Few clips a class (phase few_shot)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Precision = "auto"
    """Of the matrix products: auto is bf16 autocast on a GPU and fp32 on a CPU; weights stay fp32, or fp64 when that is asked for."""
    compile: Compile = "auto"
    """torch.compile of the step; auto: on a GPU; graphs: launches are also recorded as CUDA graphs, for small models and batches, where the
    GPU waits for the host (`ours_graphs` of benchmarks/train_step.py tells). What it makes is kept in ~/.cache/ppma/compiled, which
    $XDG_CACHE_HOME or $TORCHINDUCTOR_CACHE_DIR move, so that the next run starts faster."""
    log_every: int = 20
    """Steps between two lines of metrics; nothing is read back from the device in between."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; one is always written at the end and at a signalled stop."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    pictures_every: int = 1000
    """Steps between two sets of pictures in TensorBoard; 0: none."""
    hang_seconds: float = 1800.0
    """A process that finishes no step, or no batch of a feature pass, for so long writes the stacks of all threads and exits with 75."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints", "hang_seconds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.sources:
            raise InputError("sources is empty; name at least one source of the data catalog")
        if (self.vit.frames, self.vit.size) != (self.loader.frames, self.loader.size):
            raise InputError(
                f"the model takes {self.vit.frames} frames of {self.vit.size} pixels, the loader gives {self.loader.frames} of"
                f" {self.loader.size}; set both with --frames and --size"
            )
        if self.batch % (self.loader.views * self.accumulate):
            raise InputError(
                f"batch {self.batch} does not divide into {self.accumulate} micro-batches of clips with {self.loader.views} views"
            )
        if self.phase in ENCODED_ONCE and self.classifier.token_drop:
            raise InputError(
                "classifier.token_drop is for clips; a probe learns from features of whole ones: leave it at 0"
            )
        if self.shard and (self.phase in ENCODED_ONCE or self.average or self.precision == "fp16"):
            raise InputError("shard is for phases mae and classify in bf16, fp32 or fp64: leave it out here")
        if self.compile == "graphs" and (self.shard or self.accumulate > 1):
            raise InputError(
                "compile graphs goes with neither shard nor accumulate: take --compile on, or leave those out"
            )
        if self.average is not None and (self.phase != "classify" or self.init is not None):
            raise InputError("--average is for recipe adaptive_average, and takes the place of --init")
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise InputError(
                f"weights {self.weights} must be one number for each of the {len(self.sources)} sources {self.sources}"
            )

    @property
    def starts(self) -> tuple[Path, ...]:
        """All checkpoints that the run starts from."""
        return (*(() if self.init is None else (self.init,)), *(self.average or ()))

    @property
    def batch_clips(self) -> int:
        """Clips decoded for one global batch."""
        return self.batch // self.loader.views

    def to_json(self) -> str:
        """Return the whole config as JSON, for `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Return the config that `to_json` wrote; settings that an older version did not know get their defaults.

        Raises:
            InputError: The text is no config, or holds settings or values that do not exist.
        """
        try:
            return _restore(cls, json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"not the config of a run: {error}") from None


def _restore(kind: Any, value: Any) -> Any:
    """Return a JSON value as a field of type `kind` holds it: configs, tuples and paths."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"it has the unknown settings {', '.join(sorted(unknown))}")
        return kind(**{name: _restore(hints[name], field) for name, field in value.items()})
    if isinstance(value, list):
        return tuple(_restore(kind, item) for item in value)
    return Path(value) if isinstance(value, str) and Path in _leaf_types(kind) else value


def _leaf_types(kind: Any) -> set[Any]:
    """Return the plain types in a type hint: str and None for `tuple[str, ...] | None`."""
    arguments = get_args(kind)
    return set().union(*map(_leaf_types, arguments)) if arguments else {kind}


def read_config(folder: Path) -> RunConfig:
    """Return the config of a run folder; InputError names the file that is missing or cannot be read."""
    file = folder / "config.json"
    try:
        return RunConfig.from_json(file.read_text(encoding="utf-8"))
    except (OSError, InputError) as error:
        raise InputError(f"{file}: {error}") from None


FREE_ON_RESUME = {
    "run_dir", "data", "features", "resume", "device", "compile", "log_every", "checkpoint_every", "keep_checkpoints",
    "pictures_every", "shard", "hang_seconds", "evaluation", "vit.recompute",
    "loader.implementation", "loader.workers", "loader.prefetch_batches", "loader.read_ahead_batches", "loader.max_bad_fraction",
    "loader.stall_seconds",
}  # fmt: skip
"""Fields that a resumed run may change: none of them changes what is computed from what."""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


@cache
def defaults() -> dict[str, Any]:
    """Every setting at its default, with dotted names: what a run of an older version stands at where it knew no such setting."""
    return flat(json.loads(RunConfig(recipe="", phase="mae", sources=("any",)).to_json()))


def differences(config: RunConfig, saved: RunConfig) -> list[str]:
    """Return what a resume would silently change, one `name: saved -> asked` each."""
    asked, before = (flat(json.loads(one.to_json())) for one in (config, saved))
    free = tuple(f"{name}." for name in FREE_ON_RESUME)
    return [
        f"{name}: {before[name]} -> {asked[name]}"
        for name in sorted(asked)
        if name not in FREE_ON_RESUME and not name.startswith(free) and asked[name] != before[name]
    ]


def check_run_folder(config: RunConfig) -> None:
    """Raise InputError when the run folder holds another run, or this one and resume was not asked for."""
    if not (config.run_dir / "config.json").exists():
        return
    if not config.resume:
        raise InputError(f"{config.run_dir} holds a run already; go on with --resume, or choose another --run-dir")
    if changed := differences(config, read_config(config.run_dir)):
        raise InputError(
            f"{config.run_dir} was started with other settings ({'; '.join(changed[:5])}); resume it with the same ones"
        )


def check_ranks(config: RunConfig, ranks: int) -> None:
    """InputError unless the global batch divides into whole clips for every rank and micro-batch. In a probe all ranks do the same."""
    unit = ranks * config.accumulate * config.loader.views
    if config.phase not in ENCODED_ONCE and config.batch % unit:
        raise InputError(
            f"{config.recipe}: batch {config.batch} does not divide by {ranks} ranks x {config.accumulate} micro-batches x"
            f" {config.loader.views} views; take a multiple of {unit}, or another number of ranks"
        )
