"""What the runs that are left will take, judged by those that are done.

runs  ->  arithmetic of each phase / speed of its finished runs  ->  seconds, and whether some phase has no finished run yet
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ppma.config.run import ENCODED_ONCE, RunConfig
from ppma.loaders.sources import catalog
from ppma.models import flops
from ppma.models.masking import kept_count
from ppma.study.plan import Run
from ppma.training import seal


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is still to be done."""

    runs: int
    seconds: float
    unknown: tuple[str, ...]
    """Phases of which no run has ended, so that their time is not in `seconds`."""

    def words(self, price_per_hour: float = 0.0) -> str:
        """For people: time, and cost where an hour has a price."""
        if not self.runs:
            return "nothing"
        text = f"{self.runs} run{'s' if self.runs > 1 else ''}, "
        if not self.seconds:
            return text + f"time not known before a {' and a '.join(self.unknown)} run has ended"
        text += f"{'at least' if self.unknown else 'about'} {timedelta(seconds=round(self.seconds))}"
        if price_per_hour:
            text += f", which costs {self.seconds / 3600 * price_per_hour:.2f}"
        return text + (
            f" (not counted: runs of phase {', '.join(self.unknown)}, none of which has ended)" if self.unknown else ""
        )


def rows(config: RunConfig, split: str, sources: Sequence[str]) -> int:
    """Clips in the manifests; a quoted line end would count twice, which an estimate may."""
    data = catalog.find(config.data)
    return sum(data.entry(name, split).manifest.read_bytes().count(b"\n") - 1 for name in sources)


def arithmetic(config: RunConfig) -> float:
    """Floating-point operations of a whole run, its test included."""
    clips, test = rows(config, "train", config.sources), 0.0
    tokens = kept_count(config.vit.tokens, config.classifier.token_drop)
    if config.evaluation.at_end:
        views = config.evaluation.windows * config.evaluation.crops
        test = (
            views
            * rows(config, config.evaluation.split, config.sources[:1])
            * flops.encoder_flops(config.vit, config.vit.tokens)
        )
    if config.phase == "mae":
        return 3 * clips * config.optim.epochs * flops.mae_flops(config.vit, config.mae) + test
    frozen = config.classifier.freeze_encoder and not config.average
    passes = 1 if config.phase in ENCODED_ONCE else config.optim.epochs * (1 if frozen else 3)
    return passes * clips * flops.encoder_flops(config.vit, tokens) + test


def left(runs: Sequence[Run], done: Sequence[bool]) -> Left:
    """Time of the runs that are not done. Averages take no time worth telling."""
    seconds, spent, to_do = (defaultdict[str, float](float) for _ in range(3))
    for run, is_done in zip(runs, done):
        if run.config is None:
            continue
        if is_done:
            seconds[run.config.phase] += seal.read(run.folder).seconds
            spent[run.config.phase] += arithmetic(run.config)
        else:
            to_do[run.config.phase] += arithmetic(run.config)
    known = {phase: work * seconds[phase] / spent[phase] for phase, work in to_do.items() if spent[phase]}
    unknown = tuple(sorted(to_do.keys() - known.keys()))
    return Left(runs=sum(not is_done for is_done in done), seconds=sum(known.values()), unknown=unknown)
