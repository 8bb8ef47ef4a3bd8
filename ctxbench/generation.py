"""Image generation with the block swapped: its cells, and how one of them is carried out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import blocks
from ctxbench import environment, panels
from ctxbench.data import FOLDER, REFERENCE, TRAIN
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
    from tasks.generation.data import Images, Listing
    from tasks.generation.extractors import Extractor
    from tasks.generation.judging import Reference
    from tasks.generation.models import Layout
    from tasks.generation.recipes import Recipe
    from tasks.generation.scoring import Assessment
    from tasks.generation.training import Job, Trained

MODEL = "resgan"
WEIGHTS_ADVICE = "name the file with --weights, or have it fetched with --download (96 MB, once) from {url}"


@dataclass(frozen=True)
class GenerationCell(TaskCell):
    """One training of a GAN.

    Attributes:
        classes: of the images.
        other: the block's options in the discriminator's slot; those in the generator's are `options`.
        reference: digest of what generated images are compared with.
    """

    classes: int = 0
    other: tuple[tuple[str, Any], ...] = ()
    reference: str = ""

    starts: ClassVar[str] = "last.pt"

    @property
    def code(self) -> str:
        return "generation"

    @property
    def recipe(self) -> Recipe:
        from tasks.generation.recipes import RECIPES

        return dataclasses.replace(RECIPES[self.task][self.preset], batch=self.batch)

    @property
    def layout(self) -> Layout:
        return dataclasses.replace(self.recipe.layout, classes=self.classes)

    @property
    def dataset(self) -> str:
        height, width = self.recipe.layout.size
        return f"{self.task}-{height}x{width}"

    @property
    def twins(self) -> bool:
        return self.recipe.data == "twins"

    @property
    def steps(self) -> int:
        return self.recipe.iterations if self.iterations is None else self.iterations

    @property
    def first_weights(self) -> str:
        return f"networks {self.checkpoint}" if self.checkpoint else "random"

    @property
    def protocol(self) -> dict[str, Any]:
        about = {"data_digest": self.data, "reference_digest": self.reference, "processes": self.processes}
        return self.job().protocol() | about | {"first_weights": self.first_weights}

    def job(self, weights: Any = None) -> Job:
        """What `tasks` is to carry out."""
        from tasks.generation.training import Job

        return Job(
            recipe=self.recipe,
            layout=self.layout,
            block=self.block,
            options=(dict(self.options), dict(self.other)),
            seed=self.seed,
            iterations=self.iterations,
            dtype=self.dtype,
            device=self.device,
            weights=weights,
        )

    def missing(self, data_root: Path) -> str | None:
        if self.data:
            return None
        root = data_root / FOLDER
        return (
            f"{self.task}: no images in {root}; put them there, or into one folder for each class; what lies in "
            f"{TRAIN} is learned from, and compared with what lies in {REFERENCE}; without data: ctxbench task digits"
        )

    def check_weights(self, settings: Settings) -> None:
        weights_for(self, settings)
        if self.recipe.data != "folder" and settings.reference is None:
            return
        extractor = extractor_for(self.recipe, settings, "cpu")
        if settings.reference is not None:
            check_reference(self, extractor, settings.reference)

    def notice(self) -> str | None:
        if self.steps or self.checkpoint:
            return None
        return "nothing is trained: what is scored are random weights; --checkpoint FILE names others"

    def train(self, settings: Settings, monitor: Monitor) -> Outcome:
        return train(self, settings, monitor)


@dataclass(frozen=True)
class GenerationGrid:
    """What the user asked for, as typed; `cells` is the product of blocks, seeds and dtypes.

    Attributes:
        blocks: specs; None: the preset's own.
        data_root: the folder of data sets.
        iterations, batch: instead of the recipe's.
        checkpoint: a file with the first weights of both networks.
        reference: a file with the features of the images to compare with.
        processes: how many train the networks together.
    """

    task: str
    blocks: str | None
    preset: str
    seeds: str = "0"
    iterations: int | None = None
    batch: int | None = None
    dtypes: str = "float32"
    device: str = "cpu"
    data_root: Path = Path("data")
    checkpoint: Path | None = None
    reference: Path | None = None
    processes: int = 1

    @classmethod
    def of(cls, task: str, preset: str | None, specs: str | None, **axes: Any) -> GenerationGrid:
        from tasks.generation.recipes import RECIPES

        return cls(task, specs, next(iter(RECIPES[task])) if preset is None else preset, **axes)

    def cells(self) -> list[GenerationCell]:
        """All cells.

        Raises:
            UsageError: for whatever is not known or cannot be read.
        """
        from tasks.generation.recipes import RECIPES

        recipe = choose_preset(self.task, RECIPES[self.task], self.preset)
        batch = recipe.batch if self.batch is None else self.batch
        if batch % self.processes:
            raise UsageError(f"batches of {batch} images do not split among {self.processes} processes")
        checkpoint = "" if self.checkpoint is None else digest_of(self.checkpoint, "--checkpoint")
        data, reference, classes = self.digests(recipe)
        width, size = recipe.layout.slot_widths[0], recipe.layout.slot_size
        pairs = specs_for(recipe.blocks if self.blocks is None else self.blocks, recipe)
        for first, second in pairs:
            check_slots(first, second, recipe.layout)
        return [
            GenerationCell(
                **trained_with(first, (batch, width, *size), dtype=dtype, device=self.device, seed=seed),
                task=self.task,
                preset=self.preset,
                model=MODEL,
                data=data,
                iterations=self.iterations,
                checkpoint=checkpoint,
                processes=self.processes,
                classes=classes,
                other=second.options,
                reference=reference,
            )
            for dtype in listed(self.dtypes, DTYPES, "--dtypes")
            for seed in parse_seeds(self.seeds)
            for first, second in pairs
        ]

    def digests(self, recipe: Recipe) -> tuple[str, str, int]:
        """Those of the data and of the reference, "" where they are not there, and the number of classes."""
        given = "" if self.reference is None else digest_of(self.reference, "--reference")
        if recipe.data != "folder":
            found = data_of(recipe).digest
            return found, given or found, recipe.layout.classes
        data, reference = listings(self.data_root)
        if data is None or reference is None:
            return "", given, recipe.layout.classes
        return data.digest, given or reference.digest, len(data.classes)


def specs_for(text: str, recipe: Recipe) -> list[tuple[BlockSpec, BlockSpec]]:
    """The blocks with their options in the generator's slot and in the discriminator's."""
    pairs = []
    for spec in typed_blocks(text):
        usual = [{name: values[place] for name, values in recipe.usual.items()} for place in (0, 1)]
        pairs.append((fitted(spec, usual[0]), fitted(spec, usual[1])))
    return list(dict.fromkeys(pairs))


def check_slots(first: BlockSpec, second: BlockSpec, layout: Layout) -> None:
    """Build the block for both slots, so that what does not fit is known before.

    Raises:
        UsageError: with the reason.
    """
    import torch

    for spec, width, network in zip(
        (first, second), layout.slot_widths, ("generator", "discriminator"), strict=True
    ):
        try:
            with torch.device("meta"):
                blocks.create(spec.name, width, **dict(spec.options))
        except ValueError as error:
            raise UsageError(f"{spec.label} in the {network}, with {width} channels: {error}") from None


def listings(data_root: Path) -> tuple[Listing | None, Listing | None]:
    """The images to learn from and those to compare with; (None, None) if there are none.

    Raises:
        UsageError: for folders that cannot be used.
    """
    from tasks.generation.data import DataError, Listing
    from tasks.generation.scoring import FEWEST

    root = data_root / FOLDER
    if not root.is_dir():
        return None, None
    if (root / REFERENCE).is_dir() and not (root / TRAIN).is_dir():
        raise UsageError(f"{root} has {REFERENCE} and no {TRAIN}")
    try:
        train = Listing.of(root / TRAIN if (root / TRAIN).is_dir() else root)
        reference = Listing.of(root / REFERENCE) if (root / REFERENCE).is_dir() else train
    except (DataError, OSError) as error:
        raise UsageError(str(error)) from None
    if others := sorted({*train.classes} ^ {*reference.classes}):
        raise UsageError(f"{train.folder} and {reference.folder} differ in classes: {', '.join(others[:3])}")
    if len(reference.paths) < 2 * FEWEST:
        raise UsageError(
            f"{reference.folder}: {len(reference.paths)} images are too few to compare with; {2 * FEWEST} at least"
        )
    return train, reference


def data_of(recipe: Recipe) -> Images:
    """The images that come with a package."""
    from tasks.generation.data import digits, twins

    return twins() if recipe.data == "twins" else digits(recipe.layout.size[0])


def images_for(cell: GenerationCell, settings: Settings) -> Images:
    """What the cell learns from."""
    if cell.recipe.data != "folder":
        return data_of(cell.recipe)
    train, _ = listings(settings.data_root)
    assert train is not None
    return train.load(cell.layout.size, settings.data_root / "cache")


def extractor_for(recipe: Recipe, settings: Settings, device: str) -> Extractor:
    """What the images are judged by.

    Raises:
        UsageError: if Inception's weights are not there.
    """
    from tasks.generation.data import TWIN, digits
    from tasks.generation.extractors import (
        INCEPTION_URL,
        WeightsError,
        digits_extractor,
        inception,
        inception_place,
    )

    if recipe.data != "folder":
        size = TWIN if recipe.data == "twins" else recipe.layout.size[0]
        return digits_extractor(digits(size), kept_in(settings))
    try:
        return inception(settings.weights or inception_place(), device)
    except WeightsError as error:
        raise UsageError(f"{error}; {WEIGHTS_ADVICE.format(url=INCEPTION_URL)}") from None


def kept_in(settings: Settings) -> Path | None:
    """Where a run keeps what this version of the code has worked out; None before the run has begun."""
    if settings.folder is None or not settings.folder.exists():
        return None
    return settings.folder / "data" / f"generation-{environment.program_hash('generation')}"


def reference_for(cell: GenerationCell, extractor: Extractor, data: Images, settings: Settings) -> Reference:
    """What the generated images are compared with: its features are extracted once in a run.

    Raises:
        DataError: for images that cannot be read.
        ValueError: for too few.
    """
    from tasks.generation.data import PAIRINGS, DataError
    from tasks.generation.judging import Reference, in_batches

    if settings.reference is not None:
        return Reference.load(settings.reference)
    folder, size = kept_in(settings), "x".join(map(str, cell.layout.size))
    assert folder is not None
    kept = folder / f"reference-{cell.reference}-{size}-{extractor.name}.npz"
    with contextlib.suppress(DataError):  # not there, or damaged
        return Reference.load(kept)
    real = data
    if cell.recipe.data == "folder":
        _, listing = listings(settings.data_root)
        assert listing is not None
        real = listing.load(cell.layout.size, settings.data_root / "cache")
    every = PAIRINGS if cell.twins else 1  # each digit once
    batches = in_batches(real.images[::every], real.labels[::every])
    found = Reference.of(batches, extractor, real.digest, cell.twins)
    found.save(kept)
    return found


def check_reference(cell: GenerationCell, extractor: Extractor, path: Path) -> None:
    """Whether a saved reference can serve this cell.

    Raises:
        UsageError: saying why not.
    """
    from tasks.generation.data import DataError
    from tasks.generation.judging import Reference

    try:
        reference = Reference.load(path)
        reference.require(extractor.name, extractor.width)
        asked_labels(reference.labels, cell.recipe.count, cell.classes)
    except (DataError, ValueError) as error:
        raise UsageError(f"--reference: {error}") from None


def train(cell: GenerationCell, settings: Settings, monitor: Monitor) -> Outcome:
    """Train one cell, score its generator, and keep what came of it in the run's folder."""
    import torch

    from ctxbench.training import work_folder
    from tasks.generation import judging, training

    assert settings.folder is not None
    folder, start = settings.folder, perf_counter()
    # Whatever the scores need is made sure of before hours are spent.
    data = images_for(cell, settings)
    judged = None
    if settings.rank == 0:
        extractor = extractor_for(cell.recipe, settings, cell.device)
        judged = extractor, reference_for(cell, extractor, data, settings)

    def show(iteration: int, images: torch.Tensor) -> None:
        place = folder / "samples" / cell.id
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(
            place / f"{iteration:07d}.png", panels.tiles(images.numpy(), training.across(cell.layout))
        )

    job = cell.job(weights_for(cell, settings))
    trained = training.train(
        job, data, work_folder(folder, cell), lambda text: monitor.working(f"{cell.label}: {text}"), show
    )
    if judged is None:
        return Outcome("ok", {})
    monitor.working(f"{cell.label}: scoring")
    extractor, reference = judged
    keep(cell, folder, job, trained)
    asked = asked_labels(reference.labels, cell.recipe.count, cell.classes)
    images = training.generate(job, trained.state.average, asked)
    assessment = judging.assess(images, extractor, reference, cell.twins)
    columns = score_columns(assessment, extractor.name, cell.twins) | {
        "wall_s": perf_counter() - start,
        "train_s": trained.seconds,
        "train_cpu_s": trained.cpu_seconds,
        "memory_measured_bytes": trained.peak_bytes,
        "memory_source": "allocator" if cell.device == "cuda" else "resident",
    }
    return Outcome("ok", columns)


def asked_labels(reference: Any, count: int, classes: int) -> Any:
    """Classes of the images that are generated to be scored: as frequent as in the reference.

    Raises:
        ValueError: if it has more classes.
    """
    import torch

    real, _ = reference.sort()
    if int(real[-1]) >= classes:
        raise ValueError(f"the reference has {int(real[-1]) + 1} classes, the images {classes}")
    return real[torch.arange(count) * len(real) // count]


def keep(cell: GenerationCell, folder: Path, job: Job, trained: Trained) -> None:
    """Write losses, a sheet of samples and the weights."""
    import torch

    from tasks.generation import training

    for part in ("curves", "panels", "weights"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "curves" / f"{cell.id}.csv", trained.curve_csv())
    sheet = training.samples(job, trained.state.average).numpy()
    write_atomically(panels.path_of(folder, cell.id), panels.tiles(sheet, training.across(cell.layout)))
    weights = io.BytesIO()
    torch.save(trained.state.weights() | {"protocol": cell.protocol}, weights)
    write_atomically(folder / "weights" / f"{cell.id}.pt", weights.getvalue())


def score_columns(found: Assessment, extractor: str, twins: bool) -> dict[str, Any]:
    """The columns of a record that the scores fill."""
    scores = found.scores
    return {
        "metric": "agreement" if twins else "fid" if scores.fid is not None else "kid",
        "fid": scores.fid,
        "kid": scores.kid,
        "kid_std": scores.kid_std,
        "is_mean": scores.inception_score,
        "is_std": scores.inception_score_std,
        "precision": scores.precision,
        "recall": scores.recall,
        "accuracy": found.accuracy,
        "relative_spread": found.relative_spread,
        "agreement": found.agreement,
        "collapsed": found.collapsed,
        "images_scored": found.count,
        "extractor": extractor,
        "anchors_json": json.dumps(found.anchors.to_dict()),
    }


def weights_for(cell: GenerationCell, settings: Settings) -> dict[str, Any] | None:
    """The networks' first weights from the user's file, checked; None without one.

    Raises:
        UsageError: naming what does not fit.
    """
    if settings.checkpoint is None:
        return None
    from tasks.generation.checkpoints import CheckpointError, load

    try:
        return load(settings.checkpoint, cell.job())
    except CheckpointError as error:
        raise UsageError(str(error)) from None


def find_weights(download: bool, tell: Callable[[str], None]) -> Path:
    """Where torch-fidelity keeps Inception's weights; they are fetched only if asked for.

    Raises:
        UsageError: if the place cannot be written to.
        RunError: if the file cannot be fetched, or is not the expected one.
    """
    from ctxbench import fetch
    from tasks.generation.extractors import INCEPTION_SHA256, INCEPTION_URL, inception_place

    path = inception_place()
    if download:
        fetch.obtain(fetch.Archive(INCEPTION_URL, "sha256", INCEPTION_SHA256, 0), path.parent, tell)
    return path


def compare_folders(images: Path, real: Path, weights: Path, device: str) -> tuple[Assessment, Reference]:
    """Scores of a folder of images against another one, or against a saved reference; and that reference.

    Raises:
        UsageError: for whatever cannot be read, or is too little to be scored.
    """
    from tasks.generation.data import DataError, Listing
    from tasks.generation.extractors import INCEPTION_URL, WeightsError, inception
    from tasks.generation.judging import Reference, assess, pictures

    try:
        listing = Listing.of(images)
        if real.is_file():
            reference, other = Reference.load(real), None
        else:
            other = Listing.of(real)
        extractor = inception(weights, device)
        if other is not None:
            reference = Reference.of(pictures(other), extractor, other.digest)
        else:
            reference.require(extractor.name, extractor.width)
        return assess(pictures(listing), extractor, reference), reference
    except WeightsError as error:
        raise UsageError(f"{error}; {WEIGHTS_ADVICE.format(url=INCEPTION_URL)}") from None
    except (DataError, ValueError) as error:
        raise UsageError(f"--score: {error}") from None
    except OSError as error:
        raise UsageError(f"--score: {error.filename}: {error.strerror}") from None
