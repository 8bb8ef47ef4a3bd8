"""Segmentation with the block swapped: its cells, and how one of them is carried out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import blocks
from ctxbench import data, inspection, panels
from ctxbench.errors import UsageError
from ctxbench.outcome import Outcome
from ctxbench.spec import BlockSpec, typed_blocks
from ctxbench.store import write_atomically
from ctxbench.taskcell import (
    DTYPES,
    TaskCell,
    choose_preset,
    digest_of,
    fitted,
    listed,
    parse_seeds,
    trained_with,
)

if TYPE_CHECKING:
    from ctxbench.measure import Settings
    from ctxbench.monitor import Monitor
    from tasks.segmentation.data import DataSet
    from tasks.segmentation.recipes import Recipe
    from tasks.segmentation.training import Job

SCORINGS = ("single", "ms-flip-logits", "ms-flip-softmax")
SHOWN = 4  # images on a sheet


@dataclass(frozen=True)
class SegmentationCell(TaskCell):
    """One training of a segmentation network.

    Attributes:
        cue: area of the legend's cue in per cent, where that is the data; "" elsewhere.
        scoring: how the network is evaluated.
        backbone: digest of the file with the backbone's first weights; "": none.
    """

    cue: str = ""
    scoring: str = "single"
    backbone: str = ""

    starts: ClassVar[str] = "*/iter_*.pth"

    @property
    def code(self) -> str:
        return "segmentation"

    @property
    def dataset(self) -> str:
        name = self.stages[-1].data.name
        return f"{name}-{self.cue}" if self.cue else name

    @property
    def columns(self) -> dict[str, Any]:
        return super().columns | {"scoring": self.scoring}

    @property
    def stages(self) -> tuple[Recipe, ...]:
        from tasks.segmentation.recipes import RECIPES

        return RECIPES[self.task][self.preset]

    @property
    def steps(self) -> int:
        """All iterations of all stages."""
        return sum(self.steps_of(stage) for stage in self.stages)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a score with another."""
        stages = [self.job(number).protocol() for number in range(len(self.stages))]
        return {"stages": stages, "data_digest": self.data, "processes": self.processes}

    def steps_of(self, stage: Recipe) -> int:
        return stage.iterations if self.iterations is None else self.iterations

    @property
    def first_weights(self) -> str:
        """Where training starts, in words."""
        if self.checkpoint:
            return f"network {self.checkpoint}"
        return f"backbone {self.backbone}" if self.backbone else "random"

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not the block's defaults."""
        defaults = blocks.info(self.block).defaults
        return {name: value for name, value in self.options if value != defaults[name]}

    def job(self, stage: int, data_root: Path = Path(), state: Any = None, scoring: str = "") -> Job:
        """What `tasks` is to carry out for this stage."""
        from tasks.segmentation.training import Job

        return Job(
            recipe=self.stages[stage],
            model=self.model,
            block=self.block,
            options=dict(self.options),
            data_root=data_root,
            seed=self.seed,
            iterations=self.iterations,
            dtype=self.dtype,
            device=self.device,
            scoring=scoring or (self.scoring if stage == len(self.stages) - 1 else "single"),
            state=state,
            first_weights=self.first_weights if stage == 0 else "previous stage",
        )

    def missing(self, data_root: Path) -> str | None:
        return data.missing_data(self.stages[-1].data, self.task, data_root)

    def prepare(self, folder: Path) -> None:
        if self.cue:
            data.generate_legend(self.cue, folder)

    def check_weights(self, settings: Settings) -> None:
        from tasks.segmentation.checkpoints import CheckpointError

        try:
            weights_for(self, settings)
        except CheckpointError as error:
            raise UsageError(str(error)) from None

    def notice(self) -> str | None:
        """A word where real images meet a backbone of random weights."""
        if self.cue or self.first_weights != "random":
            return None
        return (
            f"{self.model} starts from random weights; published results start from ImageNet's: name them "
            "with --backbone FILE"
        )

    def train(self, settings: Settings, monitor: Monitor) -> Outcome:
        return train(self, settings, monitor)


@dataclass(frozen=True)
class SegmentationGrid:
    """What the user asked for, as typed; `cells` is the product of blocks, seeds, cues and dtypes.

    Attributes:
        blocks: specs; None: each model's own.
        models: names; None: the recipe's.
        cues: of the legend diagnostic; None: its default.
        data_root: the folder of data sets.
        checkpoint, backbone: files with the first weights, of the whole network or of its backbone.
        processes: how many train each network together.
    """

    task: str
    blocks: str | None
    preset: str
    models: str | None = None
    seeds: str = "0"
    cues: str | None = None
    iterations: int | None = None
    scoring: str = "single"
    dtypes: str = "float32"
    device: str = "cpu"
    data_root: Path = Path("data")
    checkpoint: Path | None = None
    backbone: Path | None = None
    processes: int = 1

    @classmethod
    def of(cls, task: str, preset: str | None, specs: str | None, **axes: Any) -> SegmentationGrid:
        from tasks.segmentation.recipes import RECIPES

        if axes.get("checkpoint") and axes.get("backbone"):
            raise UsageError(
                "--checkpoint and --backbone: one of them, please; a checkpoint holds its backbone"
            )
        usual = "paper" if "paper" in RECIPES[task] else next(iter(RECIPES[task]))
        return cls(task, specs, usual if preset is None else preset, **axes)

    def cells(self) -> list[SegmentationCell]:
        """All cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """
        from tasks.legend import CUES, DEFAULT_CUE
        from tasks.segmentation.models import MODELS
        from tasks.segmentation.recipes import RECIPES

        recipe = choose_preset(self.task, RECIPES[self.task], self.preset)[-1]
        names = listed(recipe.model if self.models is None else self.models, MODELS, "--model")
        generated = recipe.data.name == "legend"
        if self.cues is not None and not generated:
            raise UsageError("--cue is for --preset demo, whose images are generated")
        cues = listed(DEFAULT_CUE if self.cues is None else self.cues, CUES, "--cue") if generated else [""]
        if self.scoring not in SCORINGS:
            raise UsageError(f"--scoring: {self.scoring!r} is not known; choose from {', '.join(SCORINGS)}")
        digests = [
            "" if path is None else digest_of(path, option)
            for path, option in ((self.checkpoint, "--checkpoint"), (self.backbone, "--backbone"))
        ]
        data = {cue: self.data_digest(recipe.data, cue) for cue in cues}
        return [
            SegmentationCell(
                **trained_with(
                    spec,
                    (recipe.batch, block_width(MODELS[name]), *recipe.crop),
                    dtype=dtype,
                    device=self.device,
                    seed=seed,
                ),
                task=self.task,
                preset=self.preset,
                model=name,
                cue=cue,
                data=data[cue],
                iterations=self.iterations,
                scoring=self.scoring,
                checkpoint=digests[0],
                backbone=digests[1],
                processes=self.processes,
            )
            for name in names
            for cue in cues
            for dtype in listed(self.dtypes, DTYPES, "--dtypes")
            for seed in parse_seeds(self.seeds)
            for spec in specs_for(MODELS[name].block if self.blocks is None else self.blocks, MODELS[name])
        ]

    def data_digest(self, data: DataSet, cue: str) -> str:
        from tasks import legend

        if cue:
            return hashlib.sha256(legend.written(legend.Recipe(cue)).encode()).hexdigest()[:16]
        try:
            return data.digest(self.data_root)
        except OSError as error:
            raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None


def specs_for(text: str, model: Any) -> list[BlockSpec]:
    """The blocks, the model's own one with the model's options where others are not asked for."""
    return list(dict.fromkeys(fitted(spec, usual_options(spec.name, model)) for spec in typed_blocks(text)))


def usual_options(block: str, model: Any) -> dict[str, Any]:
    """The options that a block has in this model."""
    own = model.options if block == model.block else {}
    return {**model.usual.get("all", {}), **model.usual.get(block, {}), **own}


def block_width(model: Any) -> int:
    """The channels of the model's slot."""
    _, head, _ = model.parts()
    return int(head.get("block_channels") or head["channels"])


def train(cell: SegmentationCell, settings: Settings, monitor: Monitor) -> Outcome:
    """Train one cell through all its stages, and keep what came of it in the run's folder."""
    import numpy as np
    import torch

    from ctxbench.training import work_folder
    from tasks.segmentation import training

    assert settings.folder is not None
    folder, start = settings.folder, perf_counter()
    data_root = root_of(cell, settings)
    state, seconds, cpu = weights_for(cell, settings), 0.0, 0.0
    curve: list[dict[str, float]] = []
    for number in range(len(cell.stages)):
        job = cell.job(number, data_root, state)
        work = work_folder(folder, cell) / str(number)
        trained = training.train(job, work, lambda text: monitor.working(f"{cell.label}: {text}"))
        state = {name: value.cpu() for name, value in trained.network.state_dict().items()}
        result = trained.result
        curve += [{"stage": number + 1} | point for point in result.curve]
        seconds, cpu = seconds + result.seconds, cpu + result.cpu_seconds
    if settings.rank > 0:
        return Outcome("ok", {})
    for part in ("curves", "panels", "weights"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "curves" / f"{cell.id}.csv", replace(result, curve=curve).curve_csv())
    palette = np.array(trained.dataset.metainfo["palette"], dtype=np.uint8)
    write_atomically(panels.path_of(folder, cell.id), panels.sheet(trained.samples(SHOWN), palette))
    weights = io.BytesIO()
    torch.save(state, weights)
    write_atomically(folder / "weights" / f"{cell.id}.pt", weights.getvalue())
    columns: dict[str, Any] = {
        "wall_s": perf_counter() - start,
        "metric": "context_iou" if result.context_iou is not None else "miou",
        "miou": result.miou,
        "context_iou": result.context_iou,
        "pixel_accuracy": result.pixel_accuracy,
        "iou_json": json.dumps(result.iou),
        "train_s": seconds,
        "train_cpu_s": cpu,
        "memory_measured_bytes": result.peak_bytes,
        "memory_source": "allocator" if cell.device == "cuda" else "resident",
    }
    return Outcome("ok", columns)


def root_of(cell: SegmentationCell, settings: Settings) -> Path:
    """Where a cell's data lie: those that are generated in the run's folder."""
    if cell.cue and settings.folder:
        return data.legend_folder(settings.folder, cell.cue)
    return settings.data_root


def weights_for(cell: SegmentationCell, settings: Settings) -> Any:
    """The weights of the files that the user named, checked; None without any."""
    if settings.checkpoint is None and settings.backbone is None:
        return None
    from tasks.segmentation import checkpoints, training

    job = cell.job(0)
    if settings.checkpoint is not None:
        return checkpoints.load(settings.checkpoint, training.build(job).state_dict())
    assert settings.backbone is not None
    first = training.starting_weights(job)
    return first | checkpoints.load_backbone(settings.backbone, first)


def inspect(cells: Sequence[SegmentationCell], settings: Settings) -> list[Path]:
    """Look at the blocks of trained cells, whose weights the run's folder holds; returns the pictures' paths."""
    import torch

    from tasks.segmentation import training

    folder = settings.folder
    assert folder is not None
    found = []
    for cell in cells:
        weights = folder / "weights" / f"{cell.id}.pt"
        if not weights.exists():
            continue
        state = torch.load(weights, map_location="cpu", weights_only=True)
        data_root = root_of(cell, settings)
        trained = training.loaded(cell.job(len(cell.stages) - 1, data_root, state, "single"))
        title = f"{cell.label} in {cell.model} on {cell.dataset}, seed {cell.seed}"
        found.append(
            inspection.inspect(
                trained, folder, f"{cell.label}-{cell.dataset}-{cell.seed}-{cell.id[:6]}", title
            )
        )
    return found
