"""The fifteen written actions as key poses; read them with the legend of curves.Key."""

from dataclasses import replace

import numpy as np

from ppma.synthetic.motion.curves import DOWN, HANG, Key, KeyedAction, Vector, both

OUT: Vector = (1.0, 0.1, 0.0)
AHEAD: Vector = (0.1, 1.0, 0.0)
FLOOR_SEAT = -0.86
"""Height of the pelvis of someone who sits on the floor, in leg lengths below standing."""

SEATED_REACH = (0.98, 1.04)
"""Less would sit in the air."""

STAND = Key()
HALF_SIT = Key(
    pelvis=(0.0, -0.28, -0.5),
    lean=(38, 0, 0),
    bend=(10, 0, 0),
    right_foot=(0.04, 0.12, 0),
    left_foot=(0.04, 0.1, 0),
    **both((0.3, 0.5, -0.8), (0.1, 0.7, -0.5)),
)
SIT = Key(
    pelvis=(0.0, -0.35, FLOOR_SEAT),
    lean=(-8, 0, 0),
    right_foot=(0.05, 0.35, 0),
    left_foot=(0.05, 0.3, 0),
    right_toe=-15,
    left_toe=-15,
    **both((0.3, -0.45, -0.9), (0.2, -0.25, -0.95)),
)


def mirror(key: Key) -> Key:
    """The key pose with left and right exchanged."""

    def other(vector: Vector, signs: Vector) -> Vector:
        x, y, z = (a * b for a, b in zip(vector, signs))
        return x, y, z

    turned, sideways = (1, -1, -1), (-1, 1, 1)
    return Key(
        right_upper=key.left_upper,
        right_fore=key.left_fore,
        left_upper=key.right_upper,
        left_fore=key.right_fore,
        pelvis=other(key.pelvis, sideways),
        lean=other(key.lean, turned),
        bend=other(key.bend, turned),
        nod=other(key.nod, turned),
        right_foot=key.left_foot,
        left_foot=key.right_foot,
        right_toe=key.left_toe,
        left_toe=key.right_toe,
        air=key.air,
    )


def _circle(turns: int = 8) -> tuple[tuple[float, Key], ...]:
    """Straight arms that go round beside the body."""
    keys = []
    for n in range(turns):
        angle = 2 * np.pi * n / turns
        arm = (0.4, float(np.sin(angle)), float(-np.cos(angle)))
        keys.append((n / turns, Key(**both(arm, arm))))
    return tuple(keys)


BOWED = Key(
    pelvis=(0, -0.12, 0), lean=(45, 0, 0), bend=(35, 0, 0), nod=(15, 0, 0), **both((0.1, 0.5, -0.9), (0.05, 0.6, -0.9))
)
HOP_OUT = Key(air=0.09, right_foot=(0.16, 0, 0), left_foot=(0.16, 0, 0), right_toe=25, left_toe=25, **both(OUT, OUT))
STAR = Key(
    pelvis=(0, 0, -0.08), right_foot=(0.34, 0, 0), left_foot=(0.34, 0, 0), **both((0.45, 0.0, 1.0), (-0.1, 0.05, 1.0))
)
LUNGED = Key(
    pelvis=(0, 0.33, -0.36),
    right_foot=(0.02, 0.75, 0),
    left_foot=(0.02, -0.12, 0.06),
    left_toe=45,
    **both((0.45, 0.1, -0.8), (-0.3, 0.5, -0.5)),
)
STEP = Key(
    pelvis=(0.04, 0, 0),
    right_foot=(0.0, 0.28, 0.42),
    right_toe=20,
    left_upper=(0.15, 0.6, -0.8),
    left_fore=(0.0, 1.0, 0.3),
    right_upper=(0.15, -0.5, -0.9),
    right_fore=(0.1, 0.6, -0.8),
)
POINTING = Key(right_upper=(0.45, 1.0, 0.05), right_fore=(0.4, 1.0, 0.1), bend=(0, 0, 12), nod=(0, 0, -8))
BENT_RIGHT = Key(
    lean=(0, -6, 0),
    bend=(0, -34, 0),
    left_upper=(0.5, 0.1, 1.0),
    left_fore=(-0.75, 0.1, 0.8),
    right_upper=(0.35, 0.0, -1.0),
    right_fore=(0.2, 0.1, -1.0),
)
SQUATTED = Key(
    pelvis=(0, -0.22, -0.5),
    lean=(35, 0, 0),
    bend=(8, 0, 0),
    right_foot=(0.07, 0, 0),
    left_foot=(0.07, 0, 0),
    **both((0.15, 1.0, 0.0), AHEAD),
)
WOUND_UP = Key(
    right_upper=(0.95, -0.35, 0.25),
    right_fore=(0.2, -0.5, 0.9),
    left_upper=(0.35, 0.9, 0.1),
    left_fore=(0.2, 1.0, 0.1),
    bend=(-8, -6, -38),
    pelvis=(-0.04, -0.08, -0.04),
    left_foot=(0, 0.1, 0.05),
)
RELEASE = Key(
    right_upper=(0.7, 0.5, 0.75),
    right_fore=(0.2, 0.8, 0.7),
    left_upper=(0.4, 0.2, -0.9),
    left_fore=(0.1, 0.5, -0.8),
    bend=(8, 0, 5),
    pelvis=(0.02, 0.12, -0.06),
    left_foot=(0, 0.28, 0),
)
FOLLOW_THROUGH = Key(
    right_upper=(0.1, 0.9, -0.4),
    right_fore=(-0.4, 0.7, -0.7),
    left_upper=(0.4, -0.3, -0.9),
    left_fore=(0.1, 0.1, -1.0),
    bend=(26, 6, 34),
    pelvis=(0.03, 0.16, -0.07),
    left_foot=(0, 0.28, 0),
    right_toe=20,
)
SPREAD = Key(
    pelvis=(0, -0.04, -0.08),
    lean=(15, 0, 0),
    bend=(10, 0, 0),
    right_foot=(0.26, 0, 0),
    left_foot=(0.26, 0, 0),
    **both(OUT, OUT),
)
TOUCHING = replace(
    SPREAD,
    pelvis=(0, -0.16, -0.1),
    lean=(45, 0, 0),
    bend=(32, 0, 45),
    right_upper=(0.6, 0.5, -0.9),
    right_fore=(0.4, 0.5, -0.9),
)
STEPPING = Key(pelvis=(0, 0.14, -0.04), right_foot=(0.02, 0.33, 0.14))
RAISED = Key(right_upper=(0.5, 0.75, -0.4), right_fore=(-0.55, -0.15, 0.9), nod=(-4, 0, 0))
TIPPED = Key(right_upper=(0.55, 0.8, -0.15), right_fore=(-0.6, -0.3, 0.85), nod=(-26, 0, 0), bend=(-6, 0, 0))

KEYED: dict[str, KeyedAction] = {
    "arm_circles": KeyedAction(keys=_circle(), seconds=1.3, ease=False),
    "bow": KeyedAction(keys=((0.0, STAND), (0.42, BOWED), (0.58, BOWED)), seconds=2.4),
    "clap": KeyedAction(
        keys=(
            (0.0, Key(**both((0.75, 0.6, -0.5), (0.25, 0.95, 0.25)))),
            (0.5, Key(**both((0.3, 0.75, -0.6), (-0.62, 0.75, 0.3)))),
        ),
        seconds=0.6,
    ),
    "drink": KeyedAction(
        keys=((0.0, Key(right_upper=(0.15, 0.1, -1.0), right_fore=(0.0, 1.0, -0.1))), (0.3, RAISED), (0.7, TIPPED)),
        seconds=2.6,
    ),
    "jumping_jack": KeyedAction(
        keys=((0.0, Key(**both(DOWN, HANG))), (0.25, HOP_OUT), (0.5, STAR), (0.75, HOP_OUT)), seconds=1.1
    ),
    "lunge": KeyedAction(
        keys=((0.0, STAND), (0.2, STEPPING), (0.45, LUNGED), (0.6, LUNGED), (0.8, STEPPING)), seconds=2.6
    ),
    "march": KeyedAction(keys=((0.0, STAND), (0.25, STEP), (0.5, STAND), (0.75, mirror(STEP))), seconds=1.2),
    "point": KeyedAction(keys=((0.0, STAND), (0.3, POINTING), (0.72, replace(POINTING, bend=(2, 0, 14)))), seconds=2.4),
    "side_bend": KeyedAction(keys=((0.0, BENT_RIGHT), (0.5, mirror(BENT_RIGHT))), seconds=2.4),
    "sit_down": KeyedAction(
        keys=((0.0, STAND), (0.45, HALF_SIT), (1.0, SIT)), seconds=1.7, cycles=False, tempo=(0.75, 1.15)
    ),
    "squat": KeyedAction(keys=((0.0, STAND), (0.45, SQUATTED), (0.55, SQUATTED)), seconds=1.9),
    "stand_up": KeyedAction(
        keys=((0.0, SIT), (0.55, HALF_SIT), (1.0, STAND)), seconds=1.7, cycles=False, tempo=(0.75, 1.15)
    ),
    "throw": KeyedAction(
        keys=(
            (0.0, Key(left_upper=(0.25, 0.2, -1.0), left_fore=(0.0, 1.0, 0.3))),
            (0.4, WOUND_UP),
            (0.55, RELEASE),
            (0.68, FOLLOW_THROUGH),
        ),
        seconds=1.8,
    ),
    "wave": KeyedAction(
        keys=(
            (0.0, Key(right_upper=(0.85, 0.2, 0.1), right_fore=(0.55, 0.2, 0.85))),
            (0.5, Key(right_upper=(0.85, 0.2, 0.2), right_fore=(-0.45, 0.2, 0.95))),
        ),
        seconds=0.75,
    ),
    "windmill": KeyedAction(
        keys=((0.0, TOUCHING), (0.25, SPREAD), (0.5, mirror(TOUCHING)), (0.75, SPREAD)), seconds=2.2
    ),
}
"""Class to action."""
