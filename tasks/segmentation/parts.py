"""Small parts that mmengine's Runner is made of here: data, metric, hooks, mixed precision."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tasks import legend
from tasks.launch import gathered, share_buffers
from tasks.segmentation import compat
from tasks.usage import clocks

compat.prepare()

from mmcv.transforms import BaseTransform, LoadImageFromFile  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmseg.datasets import BaseSegDataset, LoadAnnotations  # noqa: E402
from mmseg.evaluation.metrics import IoUMetric  # noqa: E402
from mmseg.registry import DATASETS, METRICS, OPTIM_WRAPPERS, TRANSFORMS  # noqa: E402

IGNORED = 255


class BadDataError(ValueError):
    """A file of the data set that cannot be used; the message names it."""


@DATASETS.register_module()
class LegendDataset(BaseSegDataset):
    """The legend diagnostic (`tasks.legend`)."""

    METAINFO: ClassVar = {"classes": legend.CLASSES, "palette": [list(colour) for colour in legend.PALETTE]}


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """Reads an image by Pillow, which refuses a truncated file where OpenCV would fill it with grey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(imdecode_backend="pillow", **options)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return super().transform(results)
        except Exception as error:
            raise BadDataError(f"{results['img_path']}: {first_line(error)}") from error


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """Reads labels, which must have the image's size and no class that is not there."""

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["seg_map_path"]
        try:
            results = super().transform(results)
        except Exception as error:
            raise BadDataError(f"{path}: {first_line(error)}") from error
        labels = results["gt_seg_map"]
        if labels.shape != tuple(results["ori_shape"]):
            sizes = "{}x{} instead of {}x{}".format(*labels.shape, *results["ori_shape"])
            raise BadDataError(f"{path}: labels of {sizes}, the image's size")
        unknown = np.setdiff1d(labels, [*range(self.classes), IGNORED])
        if unknown.size:
            first = int(bool(results["reduce_zero_label"]))  # the number of the first class in the file
            known = f"{first} to {first + self.classes - 1}, and {0 if first else IGNORED}"
            raise BadDataError(f"{path}: no class {unknown[0] + first}; there are {known}")
        return results


@TRANSFORMS.register_module()
class RandomChoiceScale(BaseTransform):
    """Resizes image and labels by one of these factors, drawn for each image."""

    def __init__(self, factors: tuple[float, ...]) -> None:
        self.resizers = [
            TRANSFORMS.build({"type": "Resize", "scale_factor": it, "keep_ratio": True}) for it in factors
        ]

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        return self.resizers[np.random.randint(len(self.resizers))](results)


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """Fractions: `miou`, `pixel_accuracy` and the IoU of each class, NaN where a class never occurs."""

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        intersection, union, _, label = (sum(areas) for areas in zip(*results, strict=True))
        iou = (intersection / union).tolist()
        return {
            "miou": float(np.nanmean(iou)),
            "pixel_accuracy": float(intersection.sum() / label.sum()),
            "iou": [round(value, 6) for value in iou],
        }


@OPTIM_WRAPPERS.register_module()
class AutocastWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on any device; it needs no scaling of the loss."""

    def __init__(self, device_type: str, **options: Any) -> None:
        super().__init__(**options)
        self.device_type = device_type

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, torch.bfloat16):
            yield


class Start(Hook):
    """Puts given weights into the network before the first iteration, and none when it resumes."""

    priority = "VERY_HIGH"

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            unwrapped(runner.model).load_state_dict(self.state)


class Evaluate(Hook):
    """Scores the network every so many iterations and at the end.

    mmengine does so after it has written a checkpoint: whoever goes on from there would lack the score, and
    the random numbers that scoring has drawn.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def after_train_iter(self, runner: Any, *args: Any, **others: Any) -> None:
        if self.every_n_train_iters(runner, self.every) or self.is_last_train_iter(runner):
            share_buffers(runner.model)
            runner.val_loop.run()
            runner.model.train()


class Resumable(Hook):
    """Makes a checkpoint that holds tensors and plain values alone, and all that a bit-exact resume needs.

    mmengine skips the data that was trained on; then the states of all random numbers are set back.

    Args:
        every: iterations between checkpoints.
    """

    priority = "LOW"  # after what draws random numbers, and before the checkpoint is written

    def __init__(self, every: int) -> None:
        self.every = every
        self.of_all: list[dict[str, Any]] = []  # of each process
        self.states: dict[str, Any] | None = None

    def after_train_iter(self, runner: Any, *args: Any, **others: Any) -> None:
        if self.every_n_train_iters(runner, self.every) or self.is_last_train_iter(runner):
            share_buffers(runner.model)
            self.of_all = gathered(random_states())

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}
        checkpoint["meta"].pop("dataset_meta", None)
        checkpoint["random"] = self.of_all

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.states = checkpoint["random"][runner.rank]

    def before_train(self, runner: Any) -> None:
        if runner.iter > 0 and self.states is not None:
            loop = runner.train_loop
            loop.dataloader_iterator = resumed(loop.dataloader_iterator, runner.iter, self.states)


def resumed(iterator: Iterator[Any], skipped: int, states: dict[str, Any]) -> Iterator[Any]:
    """The same batches, with the random states set when the first new one is fetched."""
    for _ in range(skipped):
        yield next(iterator)
    set_random_states(states)
    while True:
        yield next(iterator)


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's random numbers, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


class Curve(Hook):
    """Keeps the loss of every so many iterations and each evaluation, across interruptions; tells how far it is."""

    def __init__(self, every: int, tell: Callable[[str], None]) -> None:
        self.every, self.tell = every, tell
        self.points: list[dict[str, float]] = []
        self.metrics: dict[str, Any] | None = None  # of the last evaluation in this process
        self.before = (0.0, 0.0)
        self.started: tuple[float, float] | None = None
        self.ended: tuple[float, float] | None = None

    def spent(self) -> tuple[float, float]:
        """Seconds by the clock and of CPU since the first iteration, here and in the processes that this one resumes."""
        if self.started is None:
            return self.before
        now = self.ended or clocks()
        return self.before[0] + now[0] - self.started[0], self.before[1] + now[1] - self.started[1]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.started = self.started or clocks()

    def after_train(self, runner: Any) -> None:
        self.ended = clocks()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        done = runner.iter + 1
        if done % self.every == 0:
            loss = float((outputs or {})["loss"])
            if not np.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} after {done} iterations")
            rate = runner.optim_wrapper.get_lr()["lr"][0]
            self.points.append({"iteration": done, "loss": loss, "learning_rate": rate})
            self.tell(f"iteration {done} of {runner.max_iters}, loss {loss:.3f}")

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        self.metrics = metrics
        if metrics:
            self.points.append({"iteration": runner.iter + 1, "miou": metrics["miou"]})

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"], checkpoint["spent"] = self.points, self.spent()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.points, self.before = checkpoint["curve"], checkpoint["spent"]


def unwrapped(model: nn.Module) -> nn.Module:
    return model.module if hasattr(model, "module") and isinstance(model.module, nn.Module) else model


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
