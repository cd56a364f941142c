"""Virtual humans: labeled clips of people who never existed, rendered by numpy and numba on any machine.

SynthesisConfig(out=..., classes=..., clips=...)  ->  generate()  ->  path of the manifest

CLASSES are the 30 built-in actions.
"""

from ppma.synthetic.motion.actions import CLASSES
from ppma.synthetic.production import SynthesisConfig, generate

__all__ = ["CLASSES", "SynthesisConfig", "generate"]
