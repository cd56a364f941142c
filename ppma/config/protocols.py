"""Configs of tests of a frozen encoder: grid of rates, nearest neighbors, few clips per class, attention."""

from dataclasses import dataclass
from typing import Literal

from ppma.config.errors import require, require_at_least

Mixing = Literal["model", "tensor"]


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A probe's learning rate and weight decay, chosen on held-out training clips."""

    rates: tuple[float, ...] = ()
    """Peak rates to try; none: optim.peak_lr, without a choice."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays to try with each rate; none: optim.weight_decay."""
    held_out: float = 0.1
    """Share of each class's training clips that the choice is made on, at least one clip of a class that has two."""

    def __post_init__(self) -> None:
        require(all(rate > 0 for rate in self.rates), f"grid.rates are {self.rates}; each must be above 0")
        decays = self.weight_decays
        require(all(decay >= 0 for decay in decays), f"grid.weight_decays are {decays}; each must be at least 0")
        require(0 < self.held_out < 1, f"grid.held_out is {self.held_out}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class KNNConfig:
    """Weighted nearest neighbors (Wu et al., CVPR 2018) with the values of DINO (Caron et al., ICCV 2021)."""

    k: int = 20
    """Neighbors that vote; all clips where there are fewer."""
    temperature: float = 0.07
    """A neighbor's vote is exp(cosine similarity / temperature)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "knn.", "k")
        require(self.temperature > 0, f"knn.temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """A linear head on few clips per class, for several random selections of them."""

    shots: tuple[int, ...] = (1, 5, 10)
    """Clips per class; the last number is the one of the run's own result."""
    draws: int = 10
    """Random selections for each number of clips; the same for every encoder with one seed."""
    penalty: float = 1e-3
    """Weight of half the squared norm of the head's weights, added to the mean cross-entropy."""

    def __post_init__(self) -> None:
        fits = bool(self.shots) and min(self.shots) >= 1
        require(fits, f"few_shot.shots are {self.shots}; give at least one number, each at least 1")
        require_at_least(1, self, "few_shot.", "draws")
        require(self.penalty > 0, f"few_shot.penalty is {self.penalty}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class AttentiveConfig:
    """A learned query that attends to all tokens of a frozen encoder (V-JEPA, Bardes et al., 2024)."""

    heads: int = 12
    """Heads of the cross-attention; divides the encoder's width."""
    cells: tuple[int, int, int] = (1, 1, 1)
    """Tokens along time, height and width that are averaged into one before they are cached: (1, 1, 1) keeps all. A
    clip of 16 x 224 x 224 takes 2.4 MB of disk, one eighth of that with (2, 2, 2)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "attentive.", "heads")
        require(min(self.cells) >= 1, f"attentive.cells are {self.cells}; each must be at least 1")
