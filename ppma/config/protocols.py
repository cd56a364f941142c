"""How a frozen encoder is tested beyond the linear probe: a grid of rates, nearest neighbours, few clips a class, attention over tokens.

Plain data, no torch. The protocols themselves are `grid`, `knn`, `few_shot`, `attentive`; all train on cached features of plain views.
"""

from dataclasses import dataclass
from typing import Literal

from ppma.config.errors import InputError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A probe's rate and weight decay, chosen on clips of the training split that the tried heads do not see."""

    rates: tuple[float, ...] = ()
    """Peak rates that are tried; none: optim.peak_lr, and nothing is chosen."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays that each rate is tried with; none: optim.weight_decay."""
    held_out: float = 0.1
    """Share of each class's training clips that the choice is made on, one clip of a class at least where it has two."""

    def __post_init__(self) -> None:
        _require(all(rate > 0 for rate in self.rates), f"grid.rates are {self.rates}; each must be above 0")
        _require(
            all(decay >= 0 for decay in self.weight_decays),
            f"grid.weight_decays are {self.weight_decays}; each must be at least 0",
        )
        _require(0 < self.held_out < 1, f"grid.held_out is {self.held_out}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class KNNConfig:
    """Weighted nearest neighbours among the training clips (Wu et al., CVPR 2018; numbers of DINO, Caron et al., ICCV 2021)."""

    k: int = 20
    """Neighbours that vote; fewer where there are fewer clips."""
    temperature: float = 0.07
    """A neighbour's vote is exp(cosine similarity / temperature)."""

    def __post_init__(self) -> None:
        _require(self.k >= 1, f"knn.k is {self.k}; it must be at least 1")
        _require(self.temperature > 0, f"knn.temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """A linear head from a few clips a class, for many draws of them."""

    shots: tuple[int, ...] = (1, 5, 10)
    """Clips a class; the last of them is the run's own result."""
    draws: int = 10
    """Draws of the clips for each; the same for every encoder with one seed."""
    penalty: float = 1e-3
    """Weight of half the squared norm of the head's weights against the mean cross-entropy."""

    def __post_init__(self) -> None:
        _require(
            bool(self.shots) and min(self.shots, default=0) >= 1,
            f"few_shot.shots are {self.shots}; give one number at least, each 1 or more",
        )
        _require(self.draws >= 1, f"few_shot.draws is {self.draws}; it must be at least 1")
        _require(self.penalty > 0, f"few_shot.penalty is {self.penalty}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class AttentiveConfig:
    """A learned query that attends to all tokens of the frozen encoder in place of their mean (V-JEPA, Bardes et al., 2024)."""

    heads: int = 12
    """Heads of the cross-attention; divides the encoder's width."""
    cells: tuple[int, int, int] = (1, 1, 1)
    """Tokens along time, height and width that are averaged into one before they are kept: (1, 1, 1) keeps all. A clip of 16 x 224 x 224
    takes 2.4 MB of disk, one eighth of that with (2, 2, 2)."""

    def __post_init__(self) -> None:
        _require(self.heads >= 1, f"attentive.heads is {self.heads}; it must be at least 1")
        _require(min(self.cells) >= 1, f"attentive.cells are {self.cells}; each must be at least 1")


Mixing = Literal["model", "tensor"]
