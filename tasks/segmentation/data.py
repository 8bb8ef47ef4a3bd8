"""Where data sets lie, whether they are all there, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import legend

Config = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Images with their labels, by the names in a list or, without one, all of them."""

    images: str
    labels: str
    names: str | None = None


@dataclass(frozen=True)
class DataSet:
    """One data set: its layout below the data root, and how to get it.

    Attributes:
        name: what it is selected by.
        folder: below the data root.
        kind: the class of mmsegmentation that knows its classes.
        splits: "train", "val", and whatever else it has.
        advice: how to get it.
        image_suffix, label_suffix: of the files.
    """

    name: str
    folder: str
    kind: str
    splits: dict[str, Split]
    advice: str
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"

    def missing(self, root: Path) -> list[Path]:
        """What ought to be there and is not: folders and lists of names."""
        folders = [path for it in self.splits.values() for path in (it.images, it.labels)]
        lists = [it.names for it in self.splits.values() if it.names]
        return [
            root / self.folder / path
            for paths, kind in ((dict.fromkeys(folders), Path.is_dir), (dict.fromkeys(lists), Path.is_file))
            for path in paths
            if not is_there(kind, root / self.folder / path)
        ]

    def digest(self, root: Path) -> str:
        """Changes with the lists of names and with the names and sizes of the labels; "" if any is missing."""
        if self.missing(root):
            return ""
        digest = hashlib.sha256()
        for names in filter(None, (split.names for split in self.splits.values())):
            digest.update((root / self.folder / names).read_bytes())
        for labels in dict.fromkeys(split.labels for split in self.splits.values()):
            files = sorted((root / self.folder / labels).rglob(f"*{self.label_suffix}"))
            sizes = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
            digest.update(sizes.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def config(self, root: Path, split: str, pipeline: list[Config]) -> Config:
        """The split as mmsegmentation reads it."""
        part = self.splits[split]
        found: Config = {
            "type": self.kind,
            "data_root": str(root / self.folder),
            "data_prefix": {"img_path": part.images, "seg_map_path": part.labels},
            "img_suffix": self.image_suffix,
            "seg_map_suffix": self.label_suffix,
            "pipeline": pipeline,
            "max_refetch": 0,  # a file that cannot be read is told, not replaced by another
        }
        return found if part.names is None else found | {"ann_file": part.names}


def is_there(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether a file or folder is there; what the system cannot even look at is not."""
    try:
        return kind(path)
    except OSError:
        return False


def voc_lists(labels: str, lists: str, *names: str) -> dict[str, Split]:
    return {name: Split("JPEGImages", labels, f"{lists}/{name}.txt") for name in names}


LEGEND = DataSet(
    "legend",
    "",
    "LegendDataset",
    voc_lists("SegmentationClass", "ImageSets/Segmentation", "train", "val"),
    "it is generated",
    image_suffix=".png",
)
VOC = DataSet(
    "voc",
    "VOCdevkit/VOC2012",
    "PascalVOCDataset",
    voc_lists("SegmentationClass", "ImageSets/Segmentation", "train", "trainval", "val")
    | {"aug": Split("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation/aug.txt")},
    "ctxbench data fetch voc; the further labels (SBD) and aug.txt: "
    "https://mmsegmentation.readthedocs.io/en/main/user_guides/2_dataset_prepare.html",
)
CONTEXT = DataSet(
    "pascal-context",
    "VOCdevkit/VOC2010",
    "PascalContextDataset59",
    voc_lists("SegmentationClassContext", "ImageSets/SegmentationContext", "train", "val"),
    "ctxbench data fetch pascal-context for the images; the labels are made with detail-api: "
    "https://mmsegmentation.readthedocs.io/en/main/user_guides/2_dataset_prepare.html",
)
ADE20K = DataSet(
    "ade20k",
    "ADEChallengeData2016",
    "ADE20KDataset",
    {
        "train": Split("images/training", "annotations/training"),
        "val": Split("images/validation", "annotations/validation"),
    },
    "ctxbench data fetch ade20k",
)
CITYSCAPES = DataSet(
    "cityscapes",
    "cityscapes",
    "CityscapesDataset",
    {
        "train": Split("leftImg8bit/train", "gtFine/train"),
        "val": Split("leftImg8bit/val", "gtFine/val"),
    },
    "register at https://www.cityscapes-dataset.com, fetch leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip, and run cityscapesscripts' csCreateTrainIdLabelImgs",
    image_suffix="_leftImg8bit.png",
    label_suffix="_gtFine_labelTrainIds.png",
)
DATASETS = {each.name: each for each in (LEGEND, VOC, CONTEXT, ADE20K, CITYSCAPES)}
CLASSES = {"legend": len(legend.CLASSES), "voc": 21, "pascal-context": 59, "ade20k": 150, "cityscapes": 19}
