"""How a network is trained and scored: data, augmentation, optimiser, schedule, evaluation.

Sources: the official HamNet (settings, data set and training code) for `paper` on VOC, and carried over
to PASCAL Context; the official Light-Ham configs for `paper` on ADE20K, mmsegmentation's base schedules for `mmseg`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tasks.segmentation.data import ADE20K, CITYSCAPES, CLASSES, CONTEXT, LEGEND, VOC, DataSet

Config = dict[str, Any]
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of a multi-scale evaluation, each also flipped
PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # of the paper's augmentation


@dataclass(frozen=True)
class Recipe:
    """A protocol.

    Attributes:
        data: the data set.
        train: the splits that are trained on, one after the other.
        model: what is trained unless another is named.
        iterations, batch, crop: of training; `crop` is (height, width).
        optimizer, paramwise, schedule: as mmengine has them; `schedule` is made for a number of iterations.
        augmentation: between loading and packing in training.
        resize: before the network in evaluation.
        norm_momentum: of batch normalisation; None: torch's.
        divisor: to whose multiples images are padded in evaluation, at the right and bottom.
        note: what else belongs to the protocol.
    """

    data: DataSet
    train: tuple[str, ...]
    model: str
    iterations: int
    batch: int
    crop: tuple[int, int]
    optimizer: Config
    schedule: Callable[[int], list[Config]]
    augmentation: tuple[Config, ...]
    resize: Config | None = None
    paramwise: Config | None = None
    norm_momentum: float | None = None
    divisor: int = 32
    workers: int = 4
    note: str = ""

    @property
    def classes(self) -> int:
        return CLASSES[self.data.name]

    def train_pipeline(self) -> list[Config]:
        return [*loading(self.classes), *self.augmentation, {"type": "PackSegInputs"}]

    def test_pipeline(self) -> list[Config]:
        """Labels stay as they are: predictions are resized to them."""
        load, labels = loading(self.classes)
        return [load, *([self.resize] if self.resize else []), labels, {"type": "PackSegInputs"}]


def loading(classes: int) -> list[Config]:
    return [{"type": "LoadImage"}, {"type": "LoadLabels", "classes": classes}]


def poly(
    power: float = 0.9, floor: float = 0.0, warm_up: int = 0, at_once: bool = False
) -> Callable[[int], list[Config]]:
    """The learning rate falls by a power of what is left, after a linear warm-up, or `at_once` under it."""

    def schedule(iterations: int) -> list[Config]:
        begin = min(warm_up, iterations // 2)
        start = 0 if at_once else begin
        fall = {"type": "PolyLR", "power": power, "eta_min": floor, "begin": start, "end": iterations}
        rise = {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": begin}
        return [it | {"by_epoch": False} for it in ([rise, fall] if begin else [fall])]

    return schedule


FLIP: Config = {"type": "RandomFlip", "prob": 0.5}
DEMO = Recipe(
    LEGEND,
    ("train",),
    "localnet",
    iterations=800,
    batch=8,
    crop=(128, 128),
    optimizer={"type": "AdamW", "lr": 2e-3, "weight_decay": 1e-2},
    schedule=poly(warm_up=80),
    augmentation=(FLIP,),
    workers=0,
    note="legend diagnostic: the classes of discs depend on a cue that a local network cannot see",
)


def hamnet(data: DataSet, train: tuple[str, ...], iterations: int, rate: float, *notes: str) -> Recipe:
    """The official HamNet protocol: one of seven scales, no colour changes, loss over all pixels."""
    crop = (513, 513)
    augmentation: tuple[Config, ...] = (
        {"type": "RandomChoiceScale", "factors": PAPER_SCALES},
        {"type": "RandomCrop", "crop_size": crop},
        FLIP,
    )
    return Recipe(
        data,
        train,
        "hamnet-voc-r101",
        iterations,
        batch=16,
        crop=crop,
        optimizer={"type": "SGD", "lr": rate, "momentum": 0.9, "weight_decay": 1e-4},
        schedule=poly(0.9),
        augmentation=augmentation,
        paramwise={
            "norm_decay_mult": 0.0,
            "bias_lr_mult": 2.0,
            "bias_decay_mult": 0.0,
            "custom_keys": {"ham_gate": {"decay_mult": 0.0}, "shortcut_gate": {"decay_mult": 0.0}},
        },
        norm_momentum=3e-4,
        divisor=1,
        note=" ".join(
            (
                "HamNet's official VOC settings on mmsegmentation; the learning rate falls at every iteration,",
                "not every ten; biases of normalisation have the usual rate, not twice it; evaluation does",
                "not pad to 8n + 1; labels of train and trainval are VOC's own, where the official lists take",
                "those of SBD's format for all.",
                *notes,
            )
        ),
    )


def mmseg(  # noqa: PLR0917
    data: DataSet,
    train: tuple[str, ...],
    iterations: int,
    crop: tuple[int, int],
    scale: tuple[int, int],
    batch: int = 16,
    rate: float = 0.01,
    decay: float = 5e-4,
) -> Recipe:
    """The model zoo's schedule."""
    augmentation: tuple[Config, ...] = (
        {"type": "RandomResize", "scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
        FLIP,
        {"type": "PhotoMetricDistortion"},
    )
    return Recipe(
        data,
        train,
        "hamnet-r50",
        iterations,
        batch=batch,
        crop=crop,
        optimizer={"type": "SGD", "lr": rate, "momentum": 0.9, "weight_decay": decay},
        schedule=poly(0.9, 1e-4),
        augmentation=augmentation,
        resize={"type": "Resize", "scale": scale, "keep_ratio": True},
        divisor=1,
        note="schedule of mmsegmentation's model zoo; scored on whole images, also where the zoo slides a window",
    )


def light_ham() -> Recipe:
    """Light-Ham's schedule on ADE20K."""
    base = mmseg(ADE20K, ("train",), 160_000, (512, 512), (2048, 512))
    return replace(
        base,
        model="light-ham-van-base",
        optimizer={"type": "AdamW", "lr": 6e-5, "betas": (0.9, 0.999), "weight_decay": 0.01},
        schedule=poly(1.0, warm_up=1500, at_once=True),
        paramwise={"custom_keys": {"norm": {"decay_mult": 0.0}}},
        note="official Light-Ham schedule; evaluation pads to a multiple of 32 where the official one resizes",
    )


# task -> preset -> its stages, each of which starts from the last one's weights.
RECIPES: dict[str, dict[str, tuple[Recipe, ...]]] = {
    "voc": {
        "demo": (DEMO,),
        "paper": (hamnet(VOC, ("train", "aug"), 60_000, 9e-3),),
        "paper-trainval": (
            hamnet(VOC, ("train", "aug"), 60_000, 9e-3),
            hamnet(
                VOC, ("trainval",), 20_000, 9e-4, "The images it is scored on were trained on: no result."
            ),
        ),
        "mmseg": (mmseg(VOC, ("train", "aug"), 20_000, (512, 512), (2048, 512)),),
        "mmseg-40k": (mmseg(VOC, ("train", "aug"), 40_000, (512, 512), (2048, 512)),),
    },
    "pascal-context": {
        "paper": (
            hamnet(
                CONTEXT,
                ("train",),
                25_000,
                9e-3,
                "Those of VOC, as the official ones for PASCAL Context are not public; 59 classes, without background.",
            ),
        ),
        "mmseg": (mmseg(CONTEXT, ("train",), 40_000, (480, 480), (520, 520), rate=4e-3, decay=1e-4),),
        "mmseg-80k": (mmseg(CONTEXT, ("train",), 80_000, (480, 480), (520, 520), rate=4e-3, decay=1e-4),),
    },
    "ade20k": {
        "paper": (light_ham(),),
        "mmseg": (mmseg(ADE20K, ("train",), 80_000, (512, 512), (2048, 512)),),
        "mmseg-160k": (mmseg(ADE20K, ("train",), 160_000, (512, 512), (2048, 512)),),
    },
    "cityscapes": {
        "mmseg": (mmseg(CITYSCAPES, ("train",), 40_000, (512, 1024), (2048, 1024), batch=8),),
        "mmseg-80k": (mmseg(CITYSCAPES, ("train",), 80_000, (512, 1024), (2048, 1024), batch=8),),
    },
}
