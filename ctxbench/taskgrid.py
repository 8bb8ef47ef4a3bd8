"""Tasks as cells of a run: from what the user typed to an ordered list of trainings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import blocks
from ctxbench.errors import UsageError
from ctxbench.spec import BlockSpec, Cell, typed_blocks

if TYPE_CHECKING:
    from tasks.segmentation.data import DataSet
    from tasks.segmentation.recipes import Recipe
    from tasks.segmentation.training import Job

SCORINGS = ("single", "ms-flip-logits", "ms-flip-softmax")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TaskCell(Cell):
    """One training: a network with one block in its slot, by one protocol, from one seed.

    Attributes:
        task, preset: name the recipe.
        model: the network.
        cue: area of the legend's cue in per cent, where that is the data; "" elsewhere.
        data: digest of the lists and labels that the data root holds, or of how they are drawn; "": not there.
        iterations: instead of the recipe's.
        scoring: how the network is evaluated.
        checkpoint, backbone: digests of the files with the first weights, of the whole network or of its
            backbone; "": none.
        processes: how many train the network together.
    """

    task: str = ""
    preset: str = ""
    model: str = ""
    cue: str = ""
    data: str = ""
    iterations: int | None = None
    scoring: str = "single"
    checkpoint: str = ""
    backbone: str = ""
    processes: int = 1

    @property
    def kind(self) -> Literal["profile", "task"]:
        return "task"

    @property
    def group(self) -> tuple[Any, ...]:
        """Each is trained by itself."""
        return (self.id,)

    @property
    def dataset(self) -> str:
        name = self.stages[-1].data.name
        return f"{name}-{self.cue}" if self.cue else name

    @property
    def details(self) -> str:
        return f"{self.model}  {self.dataset}  {self.dtype}  seed {self.seed}"

    @property
    def columns(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "preset": self.preset,
            "model": self.model,
            "dataset": self.dataset,
            "train_iterations": self.steps,
            "scoring": self.scoring,
            "first_weights": self.first_weights,
            "protocol_json": json.dumps(self.protocol),
        }

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


@dataclass(frozen=True)
class TaskGrid:
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

    def cells(self) -> list[TaskCell]:
        """All cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """
        from tasks.legend import CUES, DEFAULT_CUE
        from tasks.segmentation.models import MODELS
        from tasks.segmentation.recipes import RECIPES

        presets = RECIPES[self.task]
        if self.preset not in presets:
            raise UsageError(f"--preset: {self.preset!r} is not known; {self.task} has {', '.join(presets)}")
        recipe = presets[self.preset][-1]
        names = listed(recipe.model if self.models is None else self.models, MODELS, "--model")
        generated = recipe.data.name == "legend"
        if self.cues is not None and not generated:
            raise UsageError("--cue is for --preset demo, whose images are generated")
        cues = listed(DEFAULT_CUE if self.cues is None else self.cues, CUES, "--cue") if generated else [""]
        if self.scoring not in SCORINGS:
            raise UsageError(f"--scoring: {self.scoring!r} is not known; choose from {', '.join(SCORINGS)}")
        seeds = list(dict.fromkeys(int(text) for text in listed(self.seeds, None, "--seeds")))
        digests = [
            "" if path is None else digest_of(path, option)
            for path, option in ((self.checkpoint, "--checkpoint"), (self.backbone, "--backbone"))
        ]
        data = {cue: self.data_digest(recipe.data, cue) for cue in cues}
        return [
            TaskCell(
                block=spec.name,
                options=spec.options,
                batch=recipe.batch,
                channels=block_width(MODELS[name]),
                height=recipe.crop[0],
                width=recipe.crop[1],
                dtype=dtype,
                mode="train",
                compiled=False,
                device=self.device,
                estimated=False,
                seed=seed,
                label=spec.label,
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
            for seed in seeds
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


def make_grid(task: str, preset: str | None, specs: str | None, **axes: Any) -> TaskGrid:
    """The grid of a task; without blocks each model gets its own.

    Raises:
        UsageError: for a task that there is not, or packages that it needs.
    """
    from tasks.segmentation import compat
    from tasks.segmentation.recipes import RECIPES

    if task not in RECIPES:
        raise UsageError(f"{task!r} is no task; there are {', '.join(RECIPES)}")
    try:
        compat.prepare()
    except ImportError as error:
        raise UsageError(str(error)) from None
    if axes.get("checkpoint") and axes.get("backbone"):
        raise UsageError("--checkpoint and --backbone: one of them, please; a checkpoint holds its backbone")
    usual = "paper" if "paper" in RECIPES[task] else next(iter(RECIPES[task]))
    return TaskGrid(task, specs, usual if preset is None else preset, **axes)


def listed(text: str, known: Any, option: str) -> list[str]:
    """The words between commas, each of which must be known (None: be a whole number from 0 up).

    Raises:
        UsageError: naming the word and what there is.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if known is None and not (word.isascii() and word.isdigit() and len(word) < 10):
            raise UsageError(f"{option}: {word!r} is no whole number from 0 up")
        if known is not None and word not in known:
            raise UsageError(f"{option}: {word!r} is not known; choose from {', '.join(known)}")
    if not words:
        raise UsageError(f"{option} is empty")
    return words


def specs_for(text: str, model: Any) -> list[BlockSpec]:
    """The blocks, the model's own one with the model's options where others are not asked for."""
    return list(dict.fromkeys(fitted(spec, model) for spec in typed_blocks(text)))


def fitted(spec: BlockSpec, model: Any) -> BlockSpec:
    """The block with the model's options where no others were asked for."""
    info = blocks.info(spec.name)
    usual = {**model.usual.get("all", {}), **model.usual.get(spec.name, {})}
    usual = {name: value for name, value in usual.items() if name in info.options}
    own = model.options if spec.name == model.block else {}
    typed = {name: value for name, value in spec.options if name in spec.typed}
    return BlockSpec(spec.name, tuple(sorted(info.resolve(usual | own | typed).items())), spec.typed)


def block_width(model: Any) -> int:
    """The channels of the model's slot."""
    _, head, _ = model.parts()
    return int(head.get("block_channels") or head["channels"])


def digest_of(path: Path, option: str) -> str:
    try:
        if not path.is_file() and path.exists():
            raise UsageError(f"{option}: {path} is no regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from None
