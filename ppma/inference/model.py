"""Use a finished run from Python: features and predictions of videos, as `ppma features` and `ppma predict` give them.

run, checkpoint or converted folder  ->  load_model  ->  Model
    paths, frames or a manifest  ->  features, predict  ->  VideoFeatures, Prediction
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from ppma.common.frames import clips_of
from ppma.config.errors import require
from ppma.config.loader import LoaderConfig
from ppma.config.run import EvaluationConfig, Precision
from ppma.inference.videos import Rows, lay_windows, rows_of, rows_of_manifest
from ppma.loaders.decode.augment import make_views
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.samples import Sample, choose_frames
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.models.mae import MaskedAutoencoder
from ppma.training.run import FinishedRun, open_run
from ppma.transfer.features import compute_features, evaluation_loader
from ppma.transfer.result import mean_over_views

Video: TypeAlias = str | Path | np.ndarray | Tensor
"""A video file, a folder of frames, or uint8 RGB frames_THWC of any size, of which the model takes evenly spaced ones."""
OnBad = Literal["fail", "mark"]


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """One row for each video, or for each window of each video. `numpy.asarray` returns the values."""

    values: Tensor
    """float32 (R, D) on the CPU, or (R, tokens, D); NaN for a video that cannot be read."""
    video: tuple[str, ...]
    """Path of each row, as given; its number for frames."""
    number: np.ndarray
    """int64 (R,), number of the video of each row, in the order given."""
    start_seconds: np.ndarray
    """(R,); NaN for frames without `fps`, which have no times."""
    end_seconds: np.ndarray
    decoded: np.ndarray
    """bool (R,); False for a video that cannot be read."""

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.numpy(), dtype=dtype, copy=copy)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Classes of one video."""

    video: str
    top: tuple[tuple[str, float], ...]
    """(class, score), best first: the mean over all windows."""
    class_names: tuple[str, ...]
    scores: np.ndarray
    """float64 (C,), softmax averaged over all windows; NaN for a video that cannot be read."""
    window_scores: np.ndarray
    """float64 (W, C)."""
    start_seconds: np.ndarray
    """(W,); NaN for frames without `fps`, which have no times."""
    end_seconds: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    values_RV: Tensor
    """(R, views, ...) in the weights' type, on the device."""
    decoded_R: Tensor
    rows: Rows
    names: Sequence[str]
    """Of the videos."""


class Model:
    """A trained model on a device. Create one with `load_model`.

    `run.model` is its torch.nn.Module, `run.config` the config of its training.
    """

    def __init__(self, run: FinishedRun) -> None:
        self.run = run

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Class names of each label space by label; empty for a model without a head."""
        return self.run.class_names

    def features(
        self, videos: Video | Sequence[Video] | Manifest, *, window: float | None = None, stride: float | None = None,
        fps: float | None = None, tokens: bool = False, final_norm: bool = False, windows: int = 1, crops: int = 1,
        batch_clips: int = 16, on_bad: OnBad = "fail",
    ) -> VideoFeatures:  # fmt: skip
        """Return the encoder's features of videos: tokens pooled and averaged over views, before the final norm.

        Args:
            videos: One or several videos, all paths or all frames; or a manifest of the data catalog.
            window: Length in seconds of a sliding window, for a row each; None: of the model's window if there is a
                `stride`, else one row for each video.
            stride: Seconds between the starts of two windows; None: half a window.
            fps: Frames per second of frames in memory, which then are a video like a file; None: they are one window.
            tokens: Return every token, in the order (time, height, width), not their mean.
            final_norm: Apply the model's final LayerNorm, as the exported model and timm do.
            windows: Temporal windows of a video that are averaged: one is its middle, two are its start and its end.
            crops: Squares along the long side of a frame that are averaged, 1 or 3.
            batch_clips: Videos or windows at a time; changes no more than the last bits.
            on_bad: For a video that cannot be read, fail: raise InputError; mark: give it a row of NaN.

        Raises:
            InputError: A video cannot be read, is a stream, or does not fit the other arguments.
        """
        views = EvaluationConfig(windows=windows, crops=crops, batch_clips=batch_clips, on_bad=on_bad)
        sliding = window is not None or stride is not None
        require(not (sliding and windows > 1), f"windows is {windows}; leave it out where a window slides")
        require(not tokens or windows == crops == 1, "tokens of several views have no mean; use windows 1 and crops 1")
        found = self._encode(videos, window, stride, fps, views, self._reduction(tokens, final_norm))
        values_R, decoded_R, rows = found.values_RV.float().mean(dim=1).cpu(), found.decoded_R.cpu(), found.rows
        values_R[~decoded_R] = torch.nan
        return VideoFeatures(
            values=values_R, video=tuple(found.names[number] for number in rows.video_R), number=rows.video_R,
            start_seconds=rows.start_R, end_seconds=rows.end_R, decoded=decoded_R.numpy(),
        )  # fmt: skip

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a video, and a sequence of str
        self, videos: Video, *, top: int = ..., space: str | None = ..., window: float | None = ...,
        stride: float | None = ..., fps: float | None = ..., crops: int = ..., on_bad: OnBad = ...,
    ) -> Prediction:  # fmt: skip
        """Return the classes of one video."""

    @overload
    def predict(
        self, videos: Sequence[Video] | Manifest, *, top: int = ..., space: str | None = ..., window: float | None = ...,
        stride: float | None = ..., fps: float | None = ..., crops: int = ..., on_bad: OnBad = ...,
    ) -> list[Prediction]:  # fmt: skip
        """Return the classes of each of several videos."""

    def predict(
        self, videos: Video | Sequence[Video] | Manifest, *, top: int = 5, space: str | None = None, window: float | None = None,
        stride: float | None = None, fps: float | None = None, crops: int = 3, on_bad: OnBad = "fail",
    ) -> Prediction | list[Prediction]:  # fmt: skip
        """Return the classes of a video, overall and in each window; a list for several videos.

        Args:
            videos: One or several videos, all paths or all frames; or a manifest of the data catalog.
            top: Number of classes in `Prediction.top`.
            space: Label space (the data set whose classes to use); required where the model has several.
            window: Length of a window in seconds; None: that of the training.
            stride: Seconds between the starts of two windows; None: half a window.
            fps: Frames per second of frames in memory; None: they are one window.
            crops: Squares along the long side of a frame, 1 or 3 (paper: 3).
            on_bad: For a video that cannot be read, fail: raise InputError; mark: give it scores of NaN.

        Raises:
            InputError: The model has no head or several label spaces, or a video cannot be read.
        """
        require(top >= 1, f"top is {top}; it must be at least 1")
        model, space = self.run.classifier(), self._space(space)
        names = tuple(name or f"class {label}" for label, name in enumerate(self.class_names[space]))
        found = self._encode(
            videos, window, stride, fps, EvaluationConfig(windows=1, crops=crops, on_bad=on_bad), None, slides=True
        )
        with torch.inference_mode():
            logits_RVC = model.logits_of_space(found.values_RV, space)
            scores_RC = mean_over_views(logits_RVC.double().softmax(dim=-1), found.decoded_R)
        predictions, rows = [], found.rows
        for number, video in enumerate(found.names):
            own = slice(*np.searchsorted(rows.video_R, (number, number + 1)))
            mean_C = scores_RC[own].mean(axis=0)
            best = [(names[label], float(mean_C[label])) for label in np.argsort(-mean_C, kind="stable")[:top]]
            prediction = Prediction(
                video=video, top=tuple(best), class_names=names, scores=mean_C, window_scores=scores_RC[own],
                start_seconds=rows.start_R[own], end_seconds=rows.end_R[own],
            )  # fmt: skip
            predictions.append(prediction)
        single = isinstance(videos, str | Path) or (isinstance(videos, np.ndarray | Tensor) and videos.ndim == 4)
        return predictions[0] if single else predictions

    def _space(self, asked: str | None) -> str:
        """Return the label space to predict in; InputError where several fit or none does."""
        spaces = self.class_names
        if asked is None and len(spaces) == 1:
            return next(iter(spaces))
        require(asked in spaces, f"space is {asked}; the model has the label spaces {', '.join(spaces)}: choose one")
        return str(asked)

    def _reduction(self, tokens: bool, final_norm: bool) -> Callable[[Tensor], Tensor] | None:
        """Return what turns tokens_BND into the features of a view; None for the model's own pooling."""
        model = self.run.model
        if isinstance(model, MaskedAutoencoder):
            norm = model.norm if final_norm else torch.nn.Identity()
            return norm if tokens else (lambda tokens_BND: norm(tokens_BND).mean(dim=1)) if final_norm else None
        require(not (tokens and final_norm), "the final norm of a classifier is of pooled tokens; leave final_norm out")
        if tokens:
            return torch.nn.Identity()
        return (lambda tokens_BND: model.fc_norm(model.pool(tokens_BND))) if final_norm else None

    def _encode(
        self, videos: Video | Sequence[Video] | Manifest, window: float | None, stride: float | None, fps: float | None,
        views: EvaluationConfig, reduce: Callable[[Tensor], Tensor] | None, *, slides: bool = False,
    ) -> _Encoded:  # fmt: skip
        """Run the encoder over all views of videos, or of their windows; `slides`: of windows by default."""
        for name, value in (("window", window), ("stride", stride), ("fps", fps)):
            require(value is None or 0 < value < float("inf"), f"{name} is {value}; it must be above 0")
        run, asked = self.run, window is not None or stride is not None
        loader = run.loader if window is None else replace(run.loader, window_seconds=window)
        length = loader.window_seconds if asked or slides else None
        listed = [videos] if isinstance(videos, str | Path | np.ndarray | Tensor) else videos
        require(len(listed) > 0, "there is no video; give at least one")
        frames = [] if isinstance(listed, Manifest) else [v for v in listed if isinstance(v, np.ndarray | Tensor)]
        require(fps is None or bool(frames), "fps is for frames in memory; files have their own")
        if frames:
            require(len(frames) == len(listed), "give paths or frames, not both in one call")
            require(fps is not None or not asked, "frames have no times; give fps for a window that slides over them")
            clips = [clip for video in frames for clip in clips_of(video)]
            return self._encode_frames(clips, loader, length, stride, fps, views, reduce)
        if isinstance(listed, Manifest):
            names, rows = listed.texts("path"), rows_of_manifest(listed, window=length, stride=stride)
        else:
            names = [str(video) for video in listed]
            rows = rows_of(names, window=length, stride=stride, mark_bad=views.on_bad == "mark", workers=loader.workers)
        loader = replace(loader, workers=min(loader.workers, len(rows.manifest)))
        found = compute_features(
            run.model, rows.manifest, loader, views, ranks=run.ranks, compute=run.compute, reduce=reduce
        )
        decoded_R = torch.from_numpy(rows.readable_R).to(run.ranks.device)
        values_RV = found.features_VWD.new_zeros(len(decoded_R), *found.features_VWD.shape[1:])
        values_RV[decoded_R] = found.features_VWD
        decoded_R[decoded_R.clone()] = found.decoded_V
        return _Encoded(values_RV=values_RV, decoded_R=decoded_R, rows=rows, names=names)

    @torch.inference_mode()
    def _encode_frames(
        self, videos: Sequence[np.ndarray], loader: LoaderConfig, window: float | None, stride: float | None, fps: float | None,
        views: EvaluationConfig, reduce: Callable[[Tensor], Tensor] | None,
    ) -> _Encoded:  # fmt: skip
        """Encode clips in memory as the loader encodes files; without `fps` a clip is one window."""
        rate, run = fps or 1.0, self.run
        clips = [
            Clip(
                path=str(number), frames=len(video), fps=rate, height=video.shape[1], width=video.shape[2], codec="rawvideo",
                key_frame_spacing=1, duration_seconds=len(video) / rate,
            )
            for number, video in enumerate(videos)
        ]  # fmt: skip
        rows = lay_windows(clips, Path(), "frames", window if fps else None, stride)
        loader = evaluation_loader(loader if fps else replace(loader, window_seconds=float("inf")), views)
        sampler = EvaluationSampler(
            rows.manifest, loader, batch_clips=views.batch_clips, windows=views.windows, crops=views.crops
        )
        parts = []
        for step in range(sampler.steps_per_epoch):
            batch = [_views(videos[rows.video_R[one.clip]], one, rate, loader) for one in sampler.samples(0, step)]
            with run.compute.autocast():
                frames_BTHWC = torch.from_numpy(np.concatenate(batch)).to(run.ranks.device)
                tokens_BND = run.model.tokens(run.model.patches(frames_BTHWC), None)
                parts.append((reduce or run.model.pool)(tokens_BND).to(run.compute.weight_dtype))
        values_RV = torch.cat(parts).unflatten(0, (len(rows.manifest), -1))
        decoded_R = torch.ones(len(values_RV), dtype=torch.bool, device=run.ranks.device)
        if fps is None:
            rows = replace(rows, start_R=np.full(len(values_RV), np.nan), end_R=np.full(len(values_RV), np.nan))
        return _Encoded(values_RV=values_RV, decoded_R=decoded_R, rows=rows, names=[clip.path for clip in clips])


def _views(video_THWC: np.ndarray, sample: Sample, fps: float, loader: LoaderConfig) -> np.ndarray:
    """Return the views (V, T, size, size, 3) of a sample of a video in memory."""
    times = np.arange(len(video_THWC)) / fps
    chosen = choose_frames(times, sample.start_seconds, sample.end_seconds, loader.frames)
    return make_views([np.ascontiguousarray(video_THWC[i]) for i in chosen], sample.views, loader)


def load_model(
    path: Path | str,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
    workers: int = 2,
) -> Model:
    """Load a trained model.

    Args:
        path: Run folder of any recipe that trains weights, one of its checkpoint folders, or a folder that `ppma convert` or
            `ppma export` wrote.
        device: auto: the GPU where there is one.
        precision: Types of the weights and the matrix products; auto: bf16 products on a GPU, float32 on a CPU.
        workers: Processes that decode videos.

    Raises:
        InputError: The path is no model, or its weights do not fit it.
    """
    return Model(open_run(path, device=device, precision=precision, workers=workers))
