"""Trains and scores one network: the block in its slot is the only difference between two jobs."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks import legend
from tasks.launch import gathered, processes
from tasks.segmentation import compat
from tasks.segmentation.data import LEGEND
from tasks.segmentation.models import MODELS
from tasks.segmentation.recipes import SCALES, Recipe
from tasks.usage import forget_peak, peak_bytes

Settings = dict[str, Any]
CONTROL = "none"
CHECKPOINTS = 10  # in a training
EVALUATIONS = 2
POINTS = 100  # of the loss's curve
MULTI_SCALE = {
    "single": ((), "logits"),
    "ms-flip-logits": (SCALES, "logits"),
    "ms-flip-softmax": (SCALES, "softmax"),
}


@dataclass(frozen=True)
class Job:
    """What is trained, how, and with which random numbers.

    Attributes:
        recipe: the protocol.
        model, block, options: the network; of `tasks.segmentation.models` and of the catalogue.
        data_root: the folder that holds the data sets.
        seed: of weights, data order and augmentation; equal for all blocks that are compared.
        iterations: instead of the recipe's; 0: evaluation alone.
        dtype: "float32", or "bfloat16" for mixed precision.
        device: "cpu" or "cuda".
        scoring: "single", or several scales and flips with logits or softmax summed.
        state: the weights to start from; None: drawn from the seed.
        first_weights: what those are, in words.
    """

    recipe: Recipe
    model: str
    block: str
    options: Settings
    data_root: Path
    seed: int = 0
    iterations: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    scoring: str = "single"
    state: dict[str, Tensor] | None = None
    first_weights: str = "random"

    @property
    def steps(self) -> int:
        return self.recipe.iterations if self.iterations is None else self.iterations

    @property
    def interval(self) -> int:
        """Iterations between checkpoints."""
        return max(self.steps // CHECKPOINTS, 1)

    def protocol(self) -> Settings:
        """What a reader must know to compare a score with another."""
        recipe = self.recipe
        return {
            "data": recipe.data.name,
            "train": "+".join(recipe.train),
            "classes": recipe.classes,
            "model": self.model,
            "iterations": self.steps,
            "batch": recipe.batch,
            "crop": list(recipe.crop),
            "optimizer": recipe.optimizer["type"],
            "learning_rate": recipe.optimizer["lr"],
            "weight_decay": recipe.optimizer.get("weight_decay", 0.0),
            "scoring": self.scoring,
            "checkpoint_scored": "last",
            "first_weights": self.first_weights,
            "note": recipe.note,
        }


@dataclass(frozen=True)
class Result:
    """What came of a job: scores are fractions, a class that never occurs has None.

    Attributes:
        miou, context_iou: means over the classes that occur, the latter over those that need the cue.
        seconds, cpu_seconds: from the first iteration to the last, the evaluations between them and what
            went before a resume included; CPU seconds are of all threads and processes.
        peak_bytes: the most memory of a process since it took up the job.
    """

    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]
    context_iou: float | None
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    curve: list[dict[str, float]] = field(default_factory=list)

    def curve_csv(self) -> str:
        """The curve as CSV: stage, iteration, loss, learning_rate, miou; empty where there is none."""
        file = io.StringIO(newline="")
        writer = csv.DictWriter(
            file, ("stage", "iteration", "loss", "learning_rate", "miou"), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(self.curve)
        return file.getvalue()


@dataclass(frozen=True)
class Ready:
    """A network in evaluation mode, and the data it is scored on."""

    network: nn.Module
    dataset: Any

    def samples(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Images (H, W, 3), RGB, their labels and the predicted ones (H, W), spread over the data set."""
        for index in np.linspace(0, len(self.dataset) - 1, min(count, len(self.dataset))).astype(int):
            sample = self.dataset[int(index)]
            batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
            with torch.no_grad():
                (found,) = self.network.test_step(batch)  # type: ignore[operator]
            image = sample["inputs"].numpy()[::-1].transpose(1, 2, 0)
            labels = (found.gt_sem_seg.data[0], found.pred_sem_seg.data[0])
            yield image, *(each.cpu().numpy().astype(np.uint8) for each in labels)


@dataclass(frozen=True)
class Trained(Ready):
    """The same with what came of the training."""

    result: Result


def train(job: Job, folder: Path, tell: Callable[[str], None] = lambda text: None) -> Trained:
    """Carry out a job, or go on with it from the last checkpoint in `folder`.

    Raises:
        BadDataError: for an image or labels that cannot be used.
        FloatingPointError: when the loss is no longer finite.
    """
    compat.prepare()
    from mmengine.config import Config, ConfigDict
    from mmengine.runner import Runner

    from tasks.segmentation import parts

    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # mmengine would take a GPU that is there
    forget_peak(job.device)
    curve = parts.Curve(max(job.steps // POINTS, 1), tell)
    state, last = starting_weights(job), last_checkpoint(folder)
    hooks = [
        parts.Evaluate(max(job.steps // EVALUATIONS, 1)),
        parts.Resumable(job.interval),
        curve,
        parts.Start(state),
    ]
    with quiet():
        runner = Runner(
            **ConfigDict(runner_arguments(job, folder, last)),
            cfg=Config(job.protocol() | wrapping(job.device)),
        )
        for hook in hooks:
            runner.register_hook(hook)
        for loader in (runner._train_dataloader, runner._test_dataloader):
            require_images(loader["dataset"])
        if job.steps == 0:
            parts.unwrapped(runner.model).load_state_dict(state)
        elif last and iteration_of(last) == job.steps:
            runner.load_checkpoint(str(last), strict=True)
        else:
            runner.train()
        runner._has_loaded = True  # or the last checkpoint would be read again
        tell("scoring")
        metrics = curve.metrics if processes() == 1 and job.scoring == "single" else None
        metrics = metrics or runner.test()
    if np.isnan(metrics["miou"]):
        raise parts.BadDataError("no pixel of the val images has a label")
    if not all(value.isfinite().all() for value in runner.model.state_dict().values()):
        raise FloatingPointError("the trained weights are not finite")
    names = list(runner.test_dataloader.dataset.metainfo["classes"])
    iou = [None if np.isnan(value) else value for value in metrics["iou"]]
    context = [iou[index] for index in legend.CONTEXT] if job.recipe.data is LEGEND else []
    seconds, cpu_seconds = curve.spent()
    result = Result(
        metrics["miou"],
        metrics["pixel_accuracy"],
        dict(zip(names, iou, strict=True)),
        mean_of(context),
        seconds,
        sum(gathered(cpu_seconds)),
        max(gathered(peak_bytes(job.device))),
        curve.points,
    )
    return Trained(parts.unwrapped(runner.model).eval(), runner.test_dataloader.dataset, result)


def mean_of(values: list[float | None]) -> float | None:
    """Of those that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that can be read: a process may have been killed while it wrote one."""
    for path in sorted(folder.glob("iter_*.pth"), key=iteration_of, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever is wrong with it, it is of no use
            continue
        return path
    return None


def iteration_of(path: Path) -> int:
    number = path.stem.removeprefix("iter_")
    return int(number) if number.isdecimal() else -1


def loaded(job: Job) -> Ready:
    """The job's network with the weights it is to start from, without training."""
    from mmseg.registry import DATASETS

    from tasks.segmentation import parts  # noqa: F401, it registers the data set

    network = build(job)
    network.load_state_dict(starting_weights(job))
    with quiet():
        dataset = DATASETS.build(job.recipe.data.config(job.data_root, "val", job.recipe.test_pipeline()))
    return Ready(network.eval(), dataset)


def build(job: Job) -> nn.Module:
    """The job's network with its own random weights."""
    from tasks.segmentation import heads

    with quiet():
        network = heads.build(network_config(job))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and job.recipe.norm_momentum is not None:
            module.momentum = job.recipe.norm_momentum
    return network


def network_config(job: Job) -> Settings:
    config = MODELS[job.model].config(job.block, job.options, job.recipe.classes)
    config["data_preprocessor"]["size"] = job.recipe.crop
    config["scales"], config["scoring"] = MULTI_SCALE[job.scoring]
    divisor = job.recipe.divisor
    config["data_preprocessor"]["test_cfg"] = {"size_divisor": divisor} if divisor > 1 else None
    return config


def starting_weights(job: Job) -> dict[str, Tensor]:
    """Where training starts: everything outside the block is the same for all blocks of a seed."""
    if job.state is not None:
        return job.state
    found = initialised(job, job.block, job.options)
    shared = found if job.block == CONTROL else initialised(job, CONTROL, {})
    return found | {name: value for name, value in shared.items() if not within_block(name)}


def initialised(job: Job, block: str, options: Settings) -> dict[str, Tensor]:
    from dataclasses import replace

    torch.manual_seed(job.seed)
    with quiet():
        network = build(replace(job, block=block, options=options))
        own = {name: value.clone() for name, value in network.state_dict().items() if within_block(name)}
        network.init_weights()  # type: ignore[operator]
    return network.state_dict() | own


def within_block(name: str) -> bool:
    return name.startswith("decode_head.context.")


def runner_arguments(job: Job, folder: Path, last: Path | None) -> Settings:
    """Everything mmengine's Runner needs; as its `cfg`, which it prints at length, it gets less."""
    from tasks.segmentation import heads, parts  # noqa: F401, they register what the config names

    recipe, steps = job.recipe, job.steps
    world, workers = processes(), min(job.recipe.workers, cpus())
    if recipe.batch % world:
        raise ValueError(f"a batch of {recipe.batch} cannot be divided among {world} processes")
    train = [recipe.data.config(job.data_root, split, recipe.train_pipeline()) for split in recipe.train]
    test = {
        "batch_size": 1,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": recipe.data.config(job.data_root, "val", recipe.test_pipeline()) | {"test_mode": True},
    }
    wrapper: Settings = {
        "type": "OptimWrapper",
        "optimizer": recipe.optimizer,
        "paramwise_cfg": recipe.paramwise,
    }
    if job.dtype == "bfloat16":
        wrapper |= {"type": "AutocastWrapper", "device_type": job.device}
    return {
        "default_scope": "mmseg",
        "work_dir": str(folder),
        "model": build(job),
        "train_dataloader": {
            "batch_size": recipe.batch // world,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": train[0] if len(train) == 1 else {"type": "ConcatDataset", "datasets": train},
        },
        "val_dataloader": test,
        "test_dataloader": test,
        "optim_wrapper": wrapper,
        "param_scheduler": recipe.schedule(steps),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": steps,
            "val_begin": steps + 1,  # `parts.Evaluate` does it
        },
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "val_evaluator": {"type": "ClassIoU"},
        "test_evaluator": {"type": "ClassIoU"},
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {
                "type": "LoggerHook",
                "interval": max(steps // POINTS, 1),
                "log_metric_by_epoch": False,
            },
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": job.interval,
                "max_keep_ckpts": 2,  # mmengine removes the oldest before it writes the next
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "randomness": {"seed": job.seed, "diff_rank_seed": True, "deterministic": job.device == "cpu"},
        "resume": last is not None,
        "load_from": last and str(last),
        "log_level": "ERROR",
        "launcher": "none" if world == 1 else "pytorch",
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
    }


def cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_images(config: Any) -> None:
    """A list that names no images would be told by an error deep inside.

    Raises:
        BadDataError: naming the list.
    """
    from tasks.segmentation.parts import BadDataError

    for part in config.get("datasets", [config]):
        names = Path(part["data_root"]) / part.get("ann_file", "")
        if part.get("ann_file") and not names.read_text(encoding="utf-8").split():
            raise BadDataError(f"{names} lists no images")


def wrapping(device: str) -> Settings:
    """How mmengine wraps the network where several processes train it together."""
    if processes() == 1:
        return {}
    if device == "cuda":
        return {"sync_bn": "torch"}
    return {"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the packages' talk of what cannot be changed here."""
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:  # whoever configures logging later would close its files, on which mmengine then fails
        logger = MMLogger.get_current_instance()
        for handler in [it for it in logger.handlers if isinstance(it, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
