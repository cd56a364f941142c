"""Virtual humans: labelled clips of people who never lived, drawn by numpy and numba on any machine.

generate(SynthesisConfig(out=..., classes=..., clips=...)) -> path of the manifest; CLASSES are the 30 actions it knows
"""

from ppma.synthetic.motion.actions import CLASSES
from ppma.synthetic.production import SynthesisConfig, generate

__all__ = ["CLASSES", "SynthesisConfig", "generate"]
