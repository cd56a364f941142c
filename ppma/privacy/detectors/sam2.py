"""SAM 2 (Ravi et al., 2024) as a segmenter of the people in boxes, from two ONNX files of the user.

    frame_HWC (RGB uint8)  ->  encoder, once a frame  ->  features, and the corners of a box  ->  decoder  ->  probability_HW

The files have the layout of samexporter: the image is stretched to a square, a box is two points with the labels 2 and 3,
and of the masks that the decoder proposes the one counts whose predicted overlap is highest.
Legend: H height, W width of a frame in pixels, N boxes, S side of the encoder's input.
"""

from pathlib import Path

import cv2
import numpy as np

from ppma.config.errors import reading
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.detectors.runtime import Network, sigmoid
from ppma.privacy.detectors.tools import SAM2_FEATURES, SAM2_PROMPT, USER_MODELS

MEAN_3, DEVIATION_3 = (np.array(rgb, np.float32) for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
"""Normalization of the image in training."""
CORNERS = np.array([[2, 3]], np.float32)
"""Labels of the first and the second corner of a box."""
MASK_STRIDE = 4
"""Pixels of the encoder's input per pixel of an earlier mask, which is empty here."""


def _load(name: str, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Network:
    with reading(path, USER_MODELS[name].what):
        network = Network(path.read_bytes())
        if tuple(network.inputs) != inputs or not {*outputs} <= {*network.outputs}:
            raise ValueError(f"it is {', '.join(network.inputs)} to {', '.join(network.outputs)}")
    return network


class Sam2:
    """Segments people in boxes; without boxes, no one."""

    def __init__(self, encoder: Path, decoder: Path) -> None:
        """Load both files; InputError if they have another layout."""
        self._encoder = _load("sam2-encoder", encoder, ("image",), SAM2_FEATURES)
        self._decoder = _load("sam2-decoder", decoder, SAM2_PROMPT, ("masks", "iou_predictions"))
        with reading(encoder, USER_MODELS["sam2-encoder"].what):
            self._side = self._encoder.side

    def __call__(self, frame_HWC: np.ndarray, boxes_N5: np.ndarray = NONE_05) -> np.ndarray:
        """Return probability_HW of the most likely person at each pixel."""
        height, width = frame_HWC.shape[:2]
        probability_HW = np.zeros((height, width), np.float32)
        if not len(boxes_N5):
            return probability_HW
        features = self._features(frame_HWC)
        embedding = features.pop("image_embed")
        scale_2 = np.array([self._side / width, self._side / height], np.float32)
        empty = np.zeros((1, 1, *[self._side // MASK_STRIDE] * 2), np.float32)
        for box_4 in boxes_N5[:, :4]:
            prompt = {"point_coords": box_4.reshape(1, 2, 2) * scale_2, "point_labels": CORNERS}
            prompt |= {"mask_input": empty, "has_mask_input": np.zeros(1, np.float32)}
            found = dict(zip(self._decoder.outputs, self._decoder(embedding, features | prompt)))
            best_hw = found["masks"][0, found["iou_predictions"][0].argmax()]
            mask_HW = cv2.resize(sigmoid(best_hw), (width, height), interpolation=cv2.INTER_LINEAR)
            np.maximum(probability_HW, mask_HW, out=probability_HW)
        return probability_HW

    def _features(self, frame_HWC: np.ndarray) -> dict[str, np.ndarray]:
        smooth = cv2.INTER_AREA if self._side < max(frame_HWC.shape) else cv2.INTER_LINEAR
        image_SS3 = cv2.resize(frame_HWC, (self._side, self._side), interpolation=smooth)
        planes_3SS = ((image_SS3 / np.float32(255) - MEAN_3) / DEVIATION_3).transpose(2, 0, 1)
        return dict(zip(self._encoder.outputs, self._encoder(np.ascontiguousarray(planes_3SS[None]))))
