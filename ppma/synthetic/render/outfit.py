"""What people wear: one color per vertex, chosen by limb and position on the body at rest.

The splits have alternate sectors of the color wheel and their own patterns: no test outfit is seen in training.
Legend: V vertices.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

from ppma.synthetic.render.bodies import Bodies
from ppma.synthetic.splits import Split, sample_in_split

SKINS = ((240, 205, 180), (224, 190, 160), (198, 150, 120), (170, 120, 92), (141, 95, 70), (90, 60, 45))
HAIRS = ((25, 20, 20), (80, 50, 30), (170, 120, 65), (125, 120, 120), (140, 60, 35), (215, 190, 130))
SLEEVES = (-0.1, 0.4, 0.75, 1.75)
"""End of a sleeve along the arm: 0 shoulder, 1 elbow, 2 wrist."""
LEGS = (0.75, 1.05, 1.85, 1.85)
"""End of the trousers along the leg: 0 hip, 1 knee, 2 ankle."""
HAIR_ENDS = (0.45, 0.15, -0.3)
"""End of the hair at the back: 1 crown, 0 the head's joint."""
PATTERNS: dict[Split, tuple[str, ...]] = {
    "train": ("plain", "plain", "hoops"),
    "test": ("plain", "plain", "stripes", "blocks"),
}


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Where each vertex sits on the body, (V,) each."""

    limb_V: np.ndarray
    """"trunk", "head", "arm" or "leg"."""
    along_V: np.ndarray
    """Position along an arm or leg: 0 at its root, 1 at elbow or knee, 2 at wrist or ankle; 0 elsewhere."""
    position_V3: np.ndarray


def sample_color(
    rng: np.random.Generator, split: Split, bright: tuple[float, float] = (0.25, 0.95), vivid: float = 0.85
) -> np.ndarray:
    """Sample an RGB color, 0 to 255, whose hue belongs to the split.

    Args:
        rng: Random numbers.
        split: Decides which hues are possible.
        bright: Range of the value (of hue, saturation, value).
        vivid: Largest saturation.
    """
    hue = sample_in_split(rng, split, 0, 1, sectors=12)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.05, vivid), rng.uniform(*bright)), np.float32)


def _along(points_V3: np.ndarray, root_3: np.ndarray, middle_3: np.ndarray, end_3: np.ndarray) -> np.ndarray:
    """Project points onto a limb of two segments: 0 to 1 on the first, 1 to 2 on the second."""
    first, second = middle_3 - root_3, end_3 - middle_3
    down_first = (points_V3 - root_3) @ first / (first @ first)
    down_second = (points_V3 - middle_3) @ second / (second @ second)
    return np.where(down_second > 0, 1 + down_second, np.minimum(down_first, 1))


def find_regions(bodies: Bodies, body: int) -> Regions:
    """Assign the vertices of a body to limbs."""
    heads, position_V3 = bodies.bone_heads(body), bodies.vertices_NV3[body]
    bone_V = np.array(bodies.names_B)[bodies.main_bone_V()]
    limb_V, along_V = np.full(len(bone_V), "trunk", "<U5"), np.zeros(len(bone_V))
    limb_V[np.char.startswith(bone_V, "head") | np.char.startswith(bone_V, "neck0")] = "head"
    for limb, prefixes, chain in (
        ("arm", ("upperarm", "lowerarm", "wrist"), ("upperarm01", "lowerarm01", "wrist")),
        ("leg", ("upperleg", "lowerleg", "foot"), ("upperleg01", "lowerleg01", "foot")),
    ):
        for side in "LR":
            own_V = np.char.startswith(bone_V[:, None], np.array(prefixes)).any(1) & np.char.endswith(bone_V, side)
            limb_V[own_V] = limb
            along_V[own_V] = _along(position_V3[own_V], *(heads[f"{bone}.{side}"] for bone in chain))
    return Regions(limb_V=limb_V, along_V=along_V, position_V3=position_V3)


def _pattern(kind: str, position_V3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return where a shirt has its second color, bool (V,)."""
    period = rng.uniform(0.12, 0.25)
    across, up = position_V3[:, 0] / period % 1 < 0.5, position_V3[:, 2] / period % 1 < 0.5
    return {"plain": np.zeros_like(up), "hoops": up, "stripes": across, "blocks": up ^ across}[kind]


def dress(bodies: Bodies, body: int, rng: np.random.Generator, split: Split) -> np.ndarray:
    """Sample the RGB color of each vertex, (V, 3) float32: skin, hair, shirt, trousers or shorts, shoes."""
    regions, heads = find_regions(bodies, body), bodies.bone_heads(body)
    along_V, up_V = regions.along_V, regions.position_V3[:, 2]
    trunk_V, arm_V, leg_V = (regions.limb_V == limb for limb in ("trunk", "arm", "leg"))
    waist = heads["spine05"][2] + rng.uniform(0.0, 0.1)
    skin = np.array(SKINS[rng.integers(len(SKINS))]) * rng.uniform(0.9, 1.05)
    color_V3 = np.tile(skin.astype(np.float32), (len(up_V), 1))
    shirt_V = (trunk_V & (up_V >= waist)) | (arm_V & (along_V < SLEEVES[rng.integers(len(SLEEVES))]))
    color_V3[shirt_V] = sample_color(rng, split)
    pattern = PATTERNS[split][rng.integers(len(PATTERNS[split]))]
    color_V3[shirt_V & _pattern(pattern, regions.position_V3, rng)] = sample_color(rng, split)
    trousers_V = (trunk_V & (up_V < waist)) | (leg_V & (along_V < LEGS[rng.integers(len(LEGS))]))
    color_V3[trousers_V] = sample_color(rng, split, (0.15, 0.7))
    color_V3[leg_V & (along_V > 1.9)] = sample_color(rng, split, (0.1, 0.5))  # shoes
    color_V3[_hair(regions, heads["head"], rng)] = np.array(HAIRS[rng.integers(len(HAIRS))], np.float32)
    return color_V3


def _hair(regions: Regions, head_3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which vertices are hair, bool (V,)."""
    up_V = regions.position_V3[:, 2]
    height_V = (up_V - head_3[2]) / (up_V.max() - head_3[2])  # 0 at the head's joint, 1 at the crown
    behind_V = regions.position_V3[:, 1] - head_3[1]
    back_V = (behind_V > 0.01) & (height_V > HAIR_ENDS[rng.integers(len(HAIR_ENDS))])
    line_V = 0.72 - 0.25 * np.clip((behind_V + 0.03) / 0.06, 0, 1)  # lower toward the back
    return (regions.limb_V == "head") & (back_V | (height_V > line_V))
