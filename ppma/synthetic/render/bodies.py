# mypy: disable-error-code="no-untyped-def"
"""Body meshes and their animation by linear blend skinning.

    Motion + body  ->  pose(): bone matrices per frame  ->  skin(): vertices  ->  animate(): the body on the floor

Legend: N bodies, V vertices, B bones, K bones per vertex, F triangles, T frames.
"""

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.motion import ASSETS, JOINTS, Motion

FOLLOWS = {
    "root": ("root", "root", 0.0), "pelvis": ("root", "root", 0.0),
    "spine05": ("root", "chest", 0.1), "spine04": ("root", "chest", 0.35), "spine03": ("root", "chest", 0.7),
    "spine02": ("root", "chest", 1.0), "spine01": ("root", "chest", 1.0),
    "neck01": ("chest", "neck", 0.3), "neck02": ("chest", "neck", 0.6), "neck03": ("chest", "neck", 0.8), "head": ("chest", "neck", 1.0),
}  # fmt: skip  # a table
"""Bones of the trunk: the two joints between which each is interpolated, and the share of the second."""
LIMBS = {
    "upperleg": ("hip", "upperleg01", "lowerleg01"),
    "lowerleg": ("knee", "lowerleg01", "foot"),
    "upperarm": ("shoulder", "upperarm01", "lowerarm01"),
    "lowerarm": ("elbow", "lowerarm01", "wrist"),
    "wrist": ("wrist", "lowerarm01", "wrist"),
}
"""Bones of the limbs: the joint that rotates them, and the two bones whose heads give the direction in the mesh."""
SHOULDER_FOLLOWS_ARM = {"clavicle": 0.12, "shoulder01": 0.3}
"""Share of the arm's rotation that the shoulder girdle takes; without it raised arms tear the mesh."""
DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """The baked meshes, which share triangles, weights and skeleton; meters, z up, soles at z = 0."""

    vertices_NV3: np.ndarray
    heads_NB3: np.ndarray
    faces_F3: np.ndarray
    bones_VK: np.ndarray
    weights_VK: np.ndarray
    parents_B: np.ndarray
    names_B: tuple[str, ...]
    n_test: int

    def split(self, split: str) -> range:
        """Return the indices of a split's bodies; no body is in both splits."""
        n_train = len(self.vertices_NV3) - self.n_test
        return range(n_train) if split == "train" else range(n_train, len(self.vertices_NV3))

    def bone_heads(self, body: int) -> dict[str, np.ndarray]:
        """Return the head of each bone at rest, by bone name."""
        return dict(zip(self.names_B, self.heads_NB3[body]))

    def leg_length(self, body: int) -> float:
        """Return the length from hip to ankle in meters."""
        heads = self.bone_heads(body)
        thigh, shin = heads["upperleg01.L"] - heads["lowerleg01.L"], heads["lowerleg01.L"] - heads["foot.L"]
        return float(np.linalg.norm(thigh) + np.linalg.norm(shin))

    def main_bone_V(self) -> np.ndarray:
        """Return the bone with the largest weight at each vertex."""
        return np.take_along_axis(self.bones_VK, self.weights_VK.argmax(1)[:, None], 1)[:, 0]


@cache
def load() -> Bodies:
    """Load assets/bodies.npz."""
    with np.load(ASSETS / "bodies.npz") as data:
        return Bodies(
            vertices_NV3=data["vertices_NV3"].astype(np.float32),
            heads_NB3=data["heads_NB3"],
            faces_F3=data["faces_F3"].astype(np.int32),
            bones_VK=data["bones_VK"].astype(np.int32),
            weights_VK=data["weights_VK"].astype(np.float32),
            parents_B=data["parents_B"],
            names_B=tuple(data["names_B"].tolist()),
            n_test=int(data["n_test"]),
        )


def _bone_turns(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """Return the bones' world rotations, (T, B, 3, 3)."""
    by_joint = {joint: motion.turns_TJ33[:, i] for i, joint in enumerate(JOINTS)}
    heads = {name: head_3.astype(float) for name, head_3 in bodies.bone_heads(body).items()}

    def limb(name: str) -> np.ndarray:
        """Return the world rotation of a limb's bone: from the mesh's pose to pointing down, then with its joint."""
        stem, _, letter = name.partition(".")
        joint, start, end = next(limb for prefix, limb in LIMBS.items() if stem.startswith(prefix))
        along_3 = rotations.unit(heads[f"{end}.{letter}"] - heads[f"{start}.{letter}"])
        return by_joint[f"{sides[letter]}_{joint}"] @ rotations.between(along_3, DOWN)

    turns: list[np.ndarray] = []
    sides = {"L": "left", "R": "right"}
    for name in bodies.names_B:
        stem, _, letter = name.partition(".")
        if stem in FOLLOWS:
            a, b, share = FOLLOWS[stem]
            turns.append(rotations.mix(by_joint[a], by_joint[b], share))
        elif stem == "foot":
            turns.append(by_joint[f"{sides[letter]}_ankle"])
        elif stem in SHOULDER_FOLLOWS_ARM:
            turns.append(rotations.mix(by_joint["chest"], limb(f"upperarm01.{letter}"), SHOULDER_FOLLOWS_ARM[stem]))
        else:
            turns.append(limb(name))
    return np.stack(turns, 1)


def pose(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """Return bone matrices (T, B, 3, 4) float32 from rest vertices to the posed body, its root at the origin."""
    turns_TB33 = _bone_turns(bodies, body, motion)
    heads_B3 = bodies.heads_NB3[body].astype(float)
    moved_TB3 = np.zeros(turns_TB33.shape[:3])
    for bone, parent in enumerate(bodies.parents_B):
        if parent >= 0:
            moved_TB3[:, bone] = moved_TB3[:, parent] + turns_TB33[:, parent] @ (heads_B3[bone] - heads_B3[parent])
    offsets_TB3 = moved_TB3 - np.einsum("tbij,bj->tbi", turns_TB33, heads_B3)
    return np.concatenate([turns_TB33, offsets_TB3[..., None]], -1).astype(np.float32)


@numba.njit(cache=True)
def skin(rest_V3, matrices_B34, bones_VK, weights_VK, out_V3):
    """Write posed vertices to out_V3 (float32) and return the lowest z."""
    lowest = np.float32(1e9)
    for v in range(rest_V3.shape[0]):
        x, y, z = rest_V3[v, 0], rest_V3[v, 1], rest_V3[v, 2]
        for i in range(3):
            total = np.float32(0.0)
            for k in range(bones_VK.shape[1]):
                m = matrices_B34[bones_VK[v, k], i]
                total += weights_VK[v, k] * (m[0] * x + m[1] * y + m[2] * z + m[3])
            out_V3[v, i] = total
        lowest = min(lowest, out_V3[v, 2])
    return lowest


def animate(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """Return world vertices (T, V, 3) float32, on the path and with the clearance above the floor of the motion."""
    matrices_TB34, leg = pose(bodies, body, motion), bodies.leg_length(body)
    vertices_TV3 = np.empty((len(matrices_TB34), *bodies.vertices_NV3.shape[1:]), np.float32)
    for t, out_V3 in enumerate(vertices_TV3):
        lowest = skin(bodies.vertices_NV3[body], matrices_TB34[t], bodies.bones_VK, bodies.weights_VK, out_V3)
        out_V3 += np.array([*(leg * motion.path_T2[t]), leg * motion.clearance_T[t] - lowest], np.float32)
    return vertices_TV3
