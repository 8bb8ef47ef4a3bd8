"""Trains and scores one network: the block in its slot is the only difference between two jobs."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks import legend
from tasks.launch import processes
from tasks.segmentation import compat
from tasks.segmentation.data import LEGEND
from tasks.segmentation.models import MODELS
from tasks.segmentation.recipes import SCALES, Recipe

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
        scoring: "single", or several scales and flips with logits summed or softmax averaged.
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

    def protocol(self) -> Settings:
        """What a reader must know to compare a score with another."""
        recipe = self.recipe
        return {
            "data": recipe.data.name,
            "train": "+".join(recipe.train),
            "model": self.model,
            "iterations": self.steps,
            "batch": recipe.batch,
            "crop": list(recipe.crop),
            "optimizer": recipe.optimizer["type"],
            "learning_rate": recipe.optimizer["lr"],
            "scoring": self.scoring,
            "checkpoint_scored": "last",
            "first_weights": self.first_weights,
            "note": recipe.note,
        }


@dataclass(frozen=True)
class Result:
    """What came of a job: scores are fractions, times in seconds, those before a resume included.

    CPU seconds are of all threads and of the processes that load data.
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
        """The curve as CSV: iteration, loss, learning_rate, miou; empty where there is none."""
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, ("iteration", "loss", "learning_rate", "miou"), lineterminator="\n")
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
    else:
        torch.cuda.reset_peak_memory_stats()
    curve = parts.Curve(max(job.steps // POINTS, 1), tell)
    state = starting_weights(job)
    hooks = [parts.Resumable(), curve, parts.Start(state)]
    with quiet():
        runner = Runner(
            **ConfigDict(runner_arguments(job, folder)), cfg=Config(job.protocol() | wrapping(job.device))
        )
        for hook in hooks:
            runner.register_hook(hook)
        for loader in (runner._train_dataloader, runner._test_dataloader):
            require_images(loader["dataset"])
        if job.steps:
            runner.train()
        else:
            parts.unwrapped(runner.model).load_state_dict(state)
        runner._has_loaded = True  # or the last checkpoint would be read again
        share_buffers(runner.model)
        tell("scoring")
        last = curve.metrics if processes() == 1 and job.scoring == "single" else None
        metrics = last or runner.test()
    if np.isnan(metrics["miou"]):
        raise parts.BadDataError("no pixel of the val images has a label")
    if not all(value.isfinite().all() for value in runner.model.state_dict().values()):
        raise FloatingPointError("the trained weights are not finite")
    names = list(runner.test_dataloader.dataset.metainfo["classes"])
    iou = [None if np.isnan(value) else value for value in metrics["iou"]]
    context = [iou[index] for index in legend.CONTEXT] if job.recipe.data is LEGEND else []
    result = Result(
        metrics["miou"],
        metrics["pixel_accuracy"],
        dict(zip(names, iou, strict=True)),
        sum(value or 0.0 for value in context) / len(context) if context else None,
        *curve.spent(),
        peak_bytes(job.device),
        curve.points,
    )
    return Trained(parts.unwrapped(runner.model).eval(), runner.test_dataloader.dataset, result)


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


def runner_arguments(job: Job, folder: Path) -> Settings:
    """Everything mmengine's Runner needs; as its `cfg`, which it prints at length, it gets less."""
    from tasks.segmentation import heads, parts  # noqa: F401, they register what the config names

    recipe, steps = job.recipe, job.steps
    world = processes()
    if recipe.batch % world:
        raise ValueError(f"a batch of {recipe.batch} cannot be divided among {world} processes")
    train = [recipe.data.config(job.data_root, split, recipe.train_pipeline()) for split in recipe.train]
    test = {
        "batch_size": 1,
        "num_workers": recipe.workers,
        "persistent_workers": recipe.workers > 0,
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
            "num_workers": recipe.workers,
            "persistent_workers": recipe.workers > 0,
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
            "val_interval": max(steps // EVALUATIONS, 1),
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
                "interval": max(steps // CHECKPOINTS, 1),
                "max_keep_ckpts": 2,  # mmengine removes the oldest before it writes the next
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "randomness": {"seed": job.seed, "deterministic": job.device == "cpu"},
        "resume": True,
        "log_level": "ERROR",
        "launcher": "none" if world == 1 else "pytorch",
        "env_cfg": {"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
    }


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


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's statistics of normalisation, that they score one network."""
    for buffer in network.buffers() if processes() > 1 else []:
        torch.distributed.broadcast(buffer, 0)


def wrapping(device: str) -> Settings:
    """How mmengine wraps the network where several processes train it together."""
    if processes() == 1:
        return {}
    if device == "cuda":
        return {"sync_bn": "torch"}
    return {"model_wrapper_cfg": {"type": "MMDistributedDataParallel", "device_ids": None}}


def peak_bytes(device: str) -> int:
    """The most memory that was used: of CUDA's allocator, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
