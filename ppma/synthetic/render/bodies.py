# mypy: disable-error-code="no-untyped-def"
"""Bodies in motion: the baked meshes, their outfits' regions, and linear blend skinning.

    Motion + body  ->  pose(): bone matrices per frame  ->  skin(): vertices of one frame, feet on the floor

Legend: N bodies, V vertices, B bones, K bones of a vertex, F triangles, T frames.
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
}  # fmt: skip
"""Bones of the trunk: which two joints they lie between, and how far along."""
LIMBS = {
    "upperleg": ("hip", "upperleg01", "lowerleg01"),
    "lowerleg": ("knee", "lowerleg01", "foot"),
    "upperarm": ("shoulder", "upperarm01", "lowerarm01"),
    "lowerarm": ("elbow", "lowerarm01", "wrist"),
    "wrist": ("wrist", "lowerarm01", "wrist"),
}
"""Bones of the limbs: the joint that turns them, and the two bones whose heads give the limb's direction in the mesh."""
SHOULDER_FOLLOWS_ARM = {"clavicle": 0.12, "shoulder01": 0.3}
"""Share of the arm's turn that the shoulder girdle takes, or raised arms tear the mesh."""
DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """The baked meshes: rest shapes that share triangles, weights and skeleton; meters, z up, soles at z = 0."""

    vertices_NV3: np.ndarray
    heads_NB3: np.ndarray
    faces_F3: np.ndarray
    bones_VK: np.ndarray
    weights_VK: np.ndarray
    parents_B: np.ndarray
    names_B: tuple[str, ...]
    n_test: int

    def split(self, split: str) -> range:
        """Numbers of the bodies that a split may use; no body is in both."""
        n_train = len(self.vertices_NV3) - self.n_test
        return range(n_train) if split == "train" else range(n_train, len(self.vertices_NV3))

    def leg_length(self, body: int) -> float:
        """Hip to ankle, meters."""
        heads = dict(zip(self.names_B, self.heads_NB3[body]))
        thigh, shin = heads["upperleg01.L"] - heads["lowerleg01.L"], heads["lowerleg01.L"] - heads["foot.L"]
        return float(np.linalg.norm(thigh) + np.linalg.norm(shin))

    def main_bone_V(self) -> np.ndarray:
        """The bone that moves each vertex most."""
        return np.take_along_axis(self.bones_VK, self.weights_VK.argmax(1)[:, None], 1)[:, 0]


@cache
def load() -> Bodies:
    """The bodies in assets/bodies.npz."""
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


def _limb_turns(bodies: Bodies, body: int) -> dict[str, np.ndarray]:
    """Per limb bone, the turn from the mesh's spread rest pose to arms and legs that point down."""
    heads = dict(zip(bodies.names_B, bodies.heads_NB3[body].astype(float)))
    turns = {}
    for name in bodies.names_B:
        stem, _, side = name.partition(".")
        for prefix, (_, start, end) in LIMBS.items():
            if stem.startswith(prefix):
                turns[name] = rotations.between(rotations.unit(heads[f"{end}.{side}"] - heads[f"{start}.{side}"]), DOWN)
    return turns


def _bone_turns(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """World turns of the bones, (T, B, 3, 3)."""
    by_joint = {joint: motion.turns_TJ33[:, i] for i, joint in enumerate(JOINTS)}
    straight = _limb_turns(bodies, body)
    turns: list[np.ndarray] = []
    for name in bodies.names_B:
        stem, _, letter = name.partition(".")
        side = {"L": "left", "R": "right"}.get(letter, "")
        if stem in FOLLOWS:
            a, b, share = FOLLOWS[stem]
            turns.append(rotations.mix(by_joint[a], by_joint[b], share))
        elif stem == "foot":
            turns.append(by_joint[f"{side}_ankle"])
        elif stem in SHOULDER_FOLLOWS_ARM:
            arm = by_joint[f"{side}_shoulder"] @ straight[f"upperarm01.{letter}"]
            turns.append(rotations.mix(by_joint["chest"], arm, SHOULDER_FOLLOWS_ARM[stem]))
        else:
            joint = next(joint for prefix, (joint, _, _) in LIMBS.items() if stem.startswith(prefix))
            turns.append(by_joint[f"{side}_{joint}"] @ straight[name])
    return np.stack(turns, 1)


def pose(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """Bone matrices (T, B, 3, 4) that take rest vertices to the posed body, its root at the origin."""
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
    """Posed vertices into out_V3 (float32); returns the lowest z."""
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


def stand(bodies: Bodies, body: int, motion: Motion) -> np.ndarray:
    """World vertices (T, V, 3) float32 of every frame: on the path, the lowest point at the clearance above the floor."""
    matrices_TB34 = pose(bodies, body, motion)
    leg = bodies.leg_length(body)
    vertices_TV3 = np.empty((len(matrices_TB34), *bodies.vertices_NV3.shape[1:]), np.float32)
    for matrices_B34, out_V3, path_2, clearance in zip(matrices_TB34, vertices_TV3, motion.path_T2, motion.clearance_T):
        lowest = skin(bodies.vertices_NV3[body], matrices_B34, bodies.bones_VK, bodies.weights_VK, out_V3)
        out_V3 += np.array([*(leg * path_2), leg * clearance - lowest], np.float32)
    return vertices_TV3
