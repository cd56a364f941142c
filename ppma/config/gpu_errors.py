"""What to do about a GPU that a command cannot use: torch's errors of memory, age and driver as one line with the remedy.

    RuntimeError  ->  one line, or None for an error of another kind

Imports no torch: `ppma.config.command` asks for every command, and torch raises all of these as RuntimeError.
"""

import re

REMEDIES = (
    (
        r"out of memory",
        "--accumulate 2 computes the same batch in two halves, --vit.recompute and a smaller --batch take less memory too; `nvidia-smi` "
        "shows what else is on the GPU",
    ),
    (
        r"no kernel image is available|too old to be supported|not compatible with the current PyTorch",
        "this torch has no code for this GPU: `ppma doctor` names both; --device cpu runs without a GPU",
    ),
    (
        r"driver.*(too old|insufficient)|Found no NVIDIA driver",
        "update the NVIDIA driver, or install the torch that fits it (`ppma doctor` names both); --device cpu runs without a GPU",
    ),
)  # fmt: skip
"""(pattern in torch's message, what to do), in the order they are tried."""


def remedy(error: BaseException) -> str | None:
    """Return one line for an error of the GPU or of what caused it; None for any other error."""
    seen: BaseException | None = error
    while seen is not None:
        text = " ".join(str(seen).split())
        for pattern, what in REMEDIES:
            if re.search(pattern, text):
                sentences = re.split(r"(?<=[.!])\s", text)
                said = next((s for s in sentences if re.search(pattern, s)), sentences[0])
                return f"{said.rstrip('.')}: {what}"
        seen = seen.__cause__
    return None
