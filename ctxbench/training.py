"""Tasks as cells of a run: what is trained, and what its record says."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import blocks
from ctxbench import environment, gate, pinning
from ctxbench.cost import Cost
from ctxbench.errors import RAISED, RunError, UsageError, first_line
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, failure
from ctxbench.spec import BlockSpec, Cell, parse_blocks
from ctxbench.store import write_atomically

if TYPE_CHECKING:
    from ctxbench.measure import Settings
    from ctxbench.networks import NetworkCost
    from tasks.segmentation.recipes import Recipe

SCORINGS = ("single", "ms-flip-logits", "ms-flip-softmax")
DTYPES = ("float32", "bfloat16")
GAP = 4  # pixels between the pictures of a panel


@dataclass(frozen=True)
class TaskCell(Cell):
    """One training: a network with one block in its slot, by one protocol, from one seed.

    Attributes:
        task, preset: name the recipe.
        model: the network.
        cue: area of the legend's cue in per cent, where that is the data; "" elsewhere.
        iterations: instead of the recipe's.
        scoring: how the network is evaluated.
        checkpoint, backbone: digests of the files with the first weights, of the whole network or of its
            backbone; "": none.
    """

    task: str = ""
    preset: str = ""
    model: str = ""
    cue: str = ""
    iterations: int | None = None
    scoring: str = "single"
    checkpoint: str = ""
    backbone: str = ""

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
    def columns(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "preset": self.preset,
            "model": self.model,
            "dataset": self.dataset,
            "train_iterations": self.steps,
            "scoring": self.scoring,
            "first_weights": self.first_weights,
        }

    @property
    def stages(self) -> tuple[Recipe, ...]:
        from tasks.segmentation.recipes import RECIPES

        return RECIPES[self.task][self.preset]

    @property
    def steps(self) -> int:
        """All iterations of all stages."""
        return sum(self.steps_of(stage) for stage in self.stages)

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


@dataclass(frozen=True)
class TaskGrid:
    """What the user asked for, as typed; `cells` is the product of blocks, seeds, cues and dtypes.

    Attributes:
        models: names; None: the recipe's.
        cues: of the legend diagnostic; None: its default.
        checkpoint, backbone: files with the first weights, of the whole network or of its backbone.
    """

    task: str
    blocks: str
    preset: str
    models: str | None = None
    seeds: str = "0"
    cues: str | None = None
    iterations: int | None = None
    scoring: str = "single"
    dtypes: str = "float32"
    device: str = "cpu"
    checkpoint: Path | None = None
    backbone: Path | None = None

    def cells(self) -> list[Cell]:
        """All cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """
        from tasks.legend import CUES
        from tasks.segmentation.models import MODELS
        from tasks.segmentation.recipes import RECIPES

        presets = RECIPES[self.task]
        if self.preset not in presets:
            raise UsageError(f"--preset: {self.preset!r} is not known; {self.task} has {', '.join(presets)}")
        recipe = presets[self.preset][-1]
        names = listed(self.models or recipe.model, MODELS, "--model")
        generated = recipe.data.name == "legend"
        if self.cues is not None and not generated:
            raise UsageError("--cue is for --preset demo, whose images are generated")
        cues = listed(self.cues or "14", CUES, "--cue") if generated else [""]
        scoring = listed(self.scoring, SCORINGS, "--scoring")[0]
        seeds = [int(text) for text in listed(self.seeds, None, "--seeds")]
        digests = [
            "" if path is None else digest_of(path, option)
            for path, option in ((self.checkpoint, "--checkpoint"), (self.backbone, "--backbone"))
        ]
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
                iterations=self.iterations,
                scoring=scoring,
                checkpoint=digests[0],
                backbone=digests[1],
            )
            for name in names
            for cue in cues
            for dtype in listed(self.dtypes, DTYPES, "--dtypes")
            for seed in seeds
            for spec in specs_for(self.blocks or MODELS[name].block, MODELS[name])
        ]


def make_grid(task: str, preset: str | None, specs: str, **axes: Any) -> TaskGrid:
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
    return TaskGrid(task, specs, preset or usual, **axes)


def check_weights(cells: list[Cell], settings: Settings) -> None:
    """Whether the files' weights fit every network.

    Raises:
        UsageError: naming the first misfits.
    """
    from tasks.segmentation.checkpoints import CheckpointError

    try:
        for cell in cells:
            assert isinstance(cell, TaskCell)
            weights_for(cell, settings)
    except CheckpointError as error:
        raise UsageError(str(error)) from None


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
    return list(dict.fromkeys(fitted(spec, model) for spec in parse_blocks(text)))


def fitted(spec: BlockSpec, model: Any) -> BlockSpec:
    """The block with the model's options where no others were asked for."""
    info = blocks.info(spec.name)
    usual = {name: value for name, value in model.usual.items() if name in info.options}
    own = model.options if spec.name == model.block else {}
    typed = {name: value for name, value in spec.options if name in spec.typed}
    return BlockSpec(spec.name, tuple(sorted(info.resolve(usual | own | typed).items())), spec.typed)


def block_width(model: Any) -> int:
    """The channels of the model's slot."""
    _, head, _ = model.parts()
    return int(head.get("block_channels") or head["channels"])


def digest_of(path: Path, option: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from None


def estimate(cells: list[Cell]) -> list[NetworkCost]:
    """What each cell's network costs; the same network once.

    Raises:
        UsageError: for a block that does not fit into the slot.
    """
    from ctxbench import networks
    from tasks.segmentation.models import MODELS
    from tasks.segmentation.training import build

    found: dict[tuple[Any, ...], NetworkCost] = {}
    for cell in cells:
        assert isinstance(cell, TaskCell)
        key = cell.model, cell.block, cell.options
        if key in found:
            continue
        model, stage = MODELS[cell.model], cell.stages[-1]
        try:
            network = build(job_of(cell, 0, Path())).eval().to("meta")
        except ValueError as error:
            raise UsageError(f"{cell.label} in {cell.model}: {error}") from None
        context: Any = networks.part_of(network, "decode_head.context")
        params = sum(parameter.numel() for parameter in context.parameters())
        if context.param_count() != params:
            raise UsageError(
                f"{cell.label}: param_count() gives {context.param_count()}, but there are {params}"
            )
        size = stage.crop if cell.model == "localnet" else model.size
        counter, parts = networks.infer(network, size)
        found[key] = networks.NetworkCost(
            model=cell.model,
            title=model.title,
            block=cell.label,
            own=cell.block == model.block and cell.given == model.options,
            classes=stage.classes,
            size=size,
            params=sum(parameter.numel() for parameter in network.parameters()),
            block_params=params,
            parts=parts,
            macs=counter.macs,
            macs_traced=counter.macs + counter.elementwise,
            macs_convolutions=counter.convolutions,
            batch=cell.batch,
            crop=stage.crop,
            memory_train_bytes=networks.training_peak(network, cell.batch, stage.crop),
        )
    return list(found.values())


def job_of(cell: TaskCell, stage: int, data_root: Path, state: Any = None, scoring: str = "") -> Any:
    """What `tasks.segmentation.training` is to carry out for this stage of a cell."""
    from tasks.segmentation.training import Job

    return Job(
        recipe=cell.stages[stage],
        model=cell.model,
        block=cell.block,
        options=dict(cell.options),
        data_root=data_root,
        seed=cell.seed,
        iterations=cell.iterations,
        dtype=cell.dtype,
        device=cell.device,
        scoring=scoring or cell.scoring,
        state=state,
        first_weights=cell.first_weights if stage == 0 else "previous stage",
    )


def missing_data(cells: list[Cell], data_root: Path) -> str | None:
    """What is not where it should be, and how to get it; None if all is there."""
    for cell in cells:
        assert isinstance(cell, TaskCell)
        data = cell.stages[-1].data
        if data.name != "legend" and (missing := data.missing(data_root)):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            places = ", ".join(map(str, missing[:3]))
            return (
                f"{cell.task}: missing {places}{more}; to get it: {data.advice}; --data-root names the folder "
                f"that holds {data.folder}; without data: ctxbench task voc --preset demo"
            )
    return None


def missing_backbone(cells: list[Cell]) -> str | None:
    """A word where real images meet a backbone of random weights."""
    for cell in cells:
        assert isinstance(cell, TaskCell)
        if cell.stages[-1].data.name != "legend" and cell.first_weights == "random":
            return (
                f"{cell.model} starts from random weights; published results start from ImageNet's: name them "
                "with --backbone FILE"
            )
    return None


def generate_data(cells: list[Cell], folder: Path) -> None:
    """Make the images of the legend diagnostic that the cells need, each set once and as a whole."""
    from tasks import legend

    for cue in {cell.cue for cell in cells if isinstance(cell, TaskCell)} - {""}:
        target, recipe = legend_folder(folder, cue), legend.Recipe(cue)
        if not legend.is_complete(target, recipe):
            partial = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
            legend.generate(partial, recipe)
            try:
                partial.rename(target)
            except OSError:  # another run was first
                shutil.rmtree(partial, ignore_errors=True)


def legend_folder(folder: Path, cue: str) -> Path:
    return folder / "data" / f"legend-{cue}"


def settle_tasks(
    cells: list[Cell], settings: Settings, monitor: Monitor
) -> Iterator[tuple[Cell, Cost | None, Outcome]]:
    """Train the cells one after the other."""
    pinning.pin(settings.threads)
    for cell in cells:
        assert isinstance(cell, TaskCell)
        monitor.taking(cell)
        if settings.together and settings.rank == 0:
            announced(cell.id)
        monitor.measuring(f"training {cell.label}, {cell.model} on {cell.dataset}, seed {cell.seed}")
        start = perf_counter()
        try:
            with pinning.restored():  # training asks torch for deterministic algorithms
                outcome = train(cell, settings, monitor)
        except RAISED as error:
            if settings.together:  # the others wait for this process, and cannot go on without it
                raise RunError(f"{cell.label}: {first_line(original(error))}") from error
            outcome = failure(original(error), perf_counter() - start)
        yield cell, None, outcome


def join_processes(device: str) -> int:
    """This process's rank among those that torchrun started; 0 without others."""
    from tasks.segmentation import training

    return training.join_processes(device)


def processes() -> int:
    """How many processes train together."""
    from tasks.segmentation import training

    return training.processes()


def work_folder(folder: Path, cell: TaskCell) -> Path:
    """Where a cell's checkpoints lie; those of older code are not gone on with."""
    return folder / "work" / f"{cell.id}-{environment.code_hash(cell.block, 'task')}"


def clear(cells: list[Cell], folder: Path) -> None:
    """Remove the cells' checkpoints: they are done, or to be started over."""
    for cell in cells:
        for path in (folder / "work").glob(f"{cell.id}-*"):
            shutil.rmtree(path, ignore_errors=True)


def original(error: BaseException) -> BaseException:
    """What went wrong in a process that loads data: torch tells it at the end of a long text."""
    lines = str(error).strip().splitlines()
    if not lines or "DataLoader worker" not in lines[0]:
        return error
    kind, _, words = lines[-1].rpartition("Error: ")
    return RuntimeError(words if kind else lines[-1])


def take_part(cells: list[Cell], settings: Settings) -> None:
    """Train what the first of several processes announces, until it says that this was all."""
    by_id = {cell.id: cell for cell in cells}
    while cell := by_id.get(announced("")):
        for _ in settle_tasks([cell], settings, Monitor()):
            pass


def announced(cell_id: str) -> str:
    """What the first of the processes that train together says is next; "" at the end."""
    import torch

    words = [cell_id]
    torch.distributed.broadcast_object_list(words, src=0)
    return words[0]


def train(cell: TaskCell, settings: Settings, monitor: Monitor) -> Outcome:
    """Train one cell through all its stages, and keep what came of it in the run's folder."""
    import io

    import torch

    from tasks.segmentation import training

    assert settings.folder is not None
    folder, start = settings.folder, perf_counter()
    gate.check(cell.create, cell.device, torch.float32)
    data_root = legend_folder(folder, cell.cue) if cell.cue else settings.data_root
    state, seconds, cpu = weights_for(cell, settings), 0.0, 0.0
    curve: list[dict[str, float]] = []
    for number in range(len(cell.stages)):
        job = job_of(cell, number, data_root, state)
        work = work_folder(folder, cell) / str(number)
        trained = training.train(job, work, lambda text: monitor.working(f"{cell.label}: {text}"))
        state = {name: value.cpu() for name, value in trained.network.state_dict().items()}
        result = trained.result
        curve, seconds, cpu = curve + result.curve, seconds + result.seconds, cpu + result.cpu_seconds
    if settings.rank > 0:
        return Outcome("ok", {})
    for part in ("curves", "panels", "weights"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "curves" / f"{cell.id}.csv", replace(result, curve=curve).curve_csv())
    write_atomically(folder / "panels" / f"{cell.id}.png", panel(trained))
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
        "protocol_json": json.dumps(
            {"stages": [job_of(cell, n, Path()).protocol() for n in range(len(cell.stages))]}
        ),
    }
    return Outcome("ok", columns)


def weights_for(cell: TaskCell, settings: Settings) -> Any:
    """The weights of the files that the user named, checked; None without any."""
    if settings.checkpoint is None and settings.backbone is None:
        return None
    from tasks.segmentation import checkpoints, training

    job = job_of(cell, 0, Path())
    if settings.checkpoint is not None:
        return checkpoints.load(settings.checkpoint, training.build(job).state_dict())
    assert settings.backbone is not None
    first = training.starting_weights(job)
    return first | checkpoints.load_backbone(settings.backbone, first)


def inspect(cells: list[Cell], settings: Settings) -> list[Path]:
    """Look at the blocks of trained cells, whose weights the run's folder holds; returns the pictures' paths."""
    import torch

    from ctxbench import inspection
    from tasks.segmentation import training

    folder = settings.folder
    assert folder is not None
    found = []
    for cell in cells:
        assert isinstance(cell, TaskCell)
        weights = folder / "weights" / f"{cell.id}.pt"
        if not weights.exists():
            continue
        state = torch.load(weights, map_location="cpu", weights_only=True)
        data_root = legend_folder(folder, cell.cue) if cell.cue else settings.data_root
        trained = training.loaded(job_of(cell, len(cell.stages) - 1, data_root, state, scoring="single"))
        title = f"{cell.label} in {cell.model} on {cell.dataset}, seed {cell.seed}"
        found.append(
            inspection.inspect(
                trained, folder, f"{cell.label}-{cell.dataset}-{cell.seed}-{cell.id[:6]}", title
            )
        )
    return found


def panel(trained: Any, count: int = 4, scale: int = 2) -> bytes:
    """Images, truth and prediction side by side, one sample a row, as PNG."""
    import io

    import numpy as np
    from PIL import Image

    palette = np.array(trained.dataset.metainfo["palette"], dtype=np.uint8)
    shades = np.zeros((256, 3), dtype=np.uint8)
    shades[: len(palette)] = palette
    rows = []
    for image, truth, predicted in trained.samples(count):
        height, width = truth.shape
        shown = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height)))
        gap = np.full((height, GAP, 3), 255, dtype=np.uint8)
        rows.append(np.hstack([shown, gap, shades[truth], gap, shades[predicted]]))
    widest = max(row.shape[1] for row in rows)
    sheet = np.vstack(
        [np.pad(row, ((0, GAP), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )
    picture = Image.fromarray(sheet)
    if picture.width < 1000:
        picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
