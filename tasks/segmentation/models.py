"""The networks by name: backbone and head as configs of mmsegmentation, any block in the slot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tasks.van import SIZES, STRIDES, STRIDES_OS8

Config = dict[str, Any]
BN: Config = {"type": "BN", "requires_grad": True}
GN: Config = {"type": "GN", "num_groups": 32, "requires_grad": True}
IMAGENET: Config = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@dataclass(frozen=True)
class Model:
    """One network.

    Attributes:
        name: what it is selected by.
        title: its name in papers.
        block, options: what its slot holds in the paper; the options replace that block's defaults.
        parts: makes backbone, head and auxiliary head (None: none).
        usual: options where others are not asked for: under "all" those of every block that has them,
            under a block's name its own.
        size: (height, width) of the input that its published MACs refer to.
        align_corners: how logits are resized.
    """

    name: str
    title: str
    block: str
    parts: Callable[[], tuple[Config, Config, Config | None]]
    options: Config = field(default_factory=dict)
    usual: dict[str, Config] = field(default_factory=dict)
    size: tuple[int, int] = (512, 512)
    align_corners: bool = False

    def config(self, block: str, options: Config, classes: int) -> Config:
        """The whole network with this block in its slot, as mmsegmentation builds it."""
        backbone, head, auxiliary = copy.deepcopy(self.parts())
        shared = {"num_classes": classes, "align_corners": self.align_corners}
        return {
            "type": "ContextSegmentor",
            "data_preprocessor": {
                "type": "SegDataPreProcessor",
                **IMAGENET,
                "bgr_to_rgb": True,
                "pad_val": 0,
                "seg_pad_val": 255,
                "test_cfg": {"size_divisor": 32},
            },
            "backbone": backbone,
            "decode_head": head | shared | {"block": block, "block_options": options},
            "auxiliary_head": None if auxiliary is None else auxiliary | shared,
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        }


def resnet(depth: int, paper: bool = False, **head: Any) -> tuple[Config, Config, Config | None]:
    """A dilated ResNet at 1/8 of the resolution; `paper`: HamNet's stem, grid, head and no auxiliary loss."""
    backbone: Config = {
        "type": "ResNetV1c",
        "depth": depth,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "dilations": (1, 1, 2, 4),
        "strides": (1, 2, 1, 1),
        "norm_cfg": BN,
        "norm_eval": False,
        "style": "pytorch",
        "contract_dilation": True,
    }
    if paper:
        # mmsegmentation's grid holds dilations; the official one factors of 4, but for the first block.
        backbone |= {"stem_channels": 128, "multi_grid": (2, 8, 16)}
    decode: Config = {
        "type": "ContextHead",
        "in_channels": 2048,
        "in_index": 3,
        "block_channels": 512,
        "channels": 256 if paper else 512,
        "norm_cfg": BN,
        "dropout_ratio": 0.1,
    }
    if paper:
        decode["init_cfg"] = None  # the classifier is drawn as torch does
    return backbone, decode | head, None if paper else fcn(1024, BN)


def fcn(channels: int, norm: Config) -> Config:
    """The auxiliary head on the third stage."""
    return {
        "type": "FCNHead",
        "in_channels": channels,
        "in_index": 2,
        "channels": 256,
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
        "norm_cfg": norm,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
    }


def van(size: str, block_channels: int, channels: int) -> tuple[Config, Config, Config | None]:
    """VAN with the light head."""
    return (
        {"type": "VAN", "size": size, "strides": STRIDES},
        light_head(SIZES[size].dims, block_channels, channels),
        None,
    )


def van_os8(size: str) -> tuple[Config, Config, Config | None]:
    """VAN at 1/8 of the resolution, strided less and not dilated, with the head of HamNet+."""
    dims = SIZES[size].dims
    head: Config = {
        "type": "ContextHead",
        "in_channels": dims[3],
        "in_index": 3,
        "block_channels": 512,
        "channels": 512,
        "concat_input": True,
        "norm_cfg": GN,
        "dropout_ratio": 0.1,
    }
    return {"type": "VAN", "size": size, "strides": STRIDES_OS8}, head, fcn(dims[2], GN)


def light_head(dims: tuple[int, ...], block_channels: int, channels: int) -> Config:
    return {
        "type": "LightContextHead",
        "in_channels": list(dims[1:]),
        "block_channels": block_channels,
        "channels": channels,
        "dropout_ratio": 0.1,
    }


def segnext(size: str, width: int) -> tuple[Config, Config, Config | None]:
    """MSCAN with the light head."""
    names = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
    about = SIZES[names[size]]  # MSCAN has the widths and depths of VAN
    backbone: Config = {
        "type": "MSCAN",
        "embed_dims": list(about.dims),
        "depths": list(about.depths),
        "mlp_ratios": [8, 8, 4, 4],
        "drop_path_rate": 0.3 if size == "l" else 0.1,
        "attention_kernel_sizes": [5, [1, 7], [1, 11], [1, 21]],
        "attention_kernel_paddings": [2, [0, 3], [0, 5], [0, 10]],
        "act_cfg": {"type": "GELU"},
        "norm_cfg": BN,
    }
    return backbone, light_head(about.dims, width, width), None


def local() -> tuple[Config, Config, Config | None]:
    """A backbone that sees 15 pixels, so that all context comes from the block."""
    head: Config = {
        "type": "ContextHead",
        "in_channels": 64,
        "in_index": 0,
        "channels": 64,
        "kernel_size": 1,
        "norm_cfg": BN,
        "dropout_ratio": 0.0,
        "init_cfg": None,  # mmsegmentation's classifier starts too small for a few hundred iterations
    }
    return {"type": "LocalNet"}, head, None


def models() -> list[Model]:
    wide: Config = {"size": (512, 2048)}
    found = [
        # As many channels for each base as in the paper, 512 for 64; and scores that do not saturate the softmax,
        # which would leave attention without a gradient in half of the seeds.
        Model(
            "localnet",
            "LocalNet",
            "ham-nmf",
            local,
            usual={"all": {"rank": 8}, "self-attn": {"scale": True}},
        ),
        Model("hamnet-r50", "HamNet ResNet-50", "ham-nmf", partial(resnet, 50), **wide),
        Model("hamnet-r101", "HamNet ResNet-101", "ham-nmf", partial(resnet, 101), **wide),
        Model(
            "hamnet-plus-r50", "HamNet+ ResNet-50", "ham-nmf", partial(resnet, 50, concat_input=True), **wide
        ),
        Model(
            "hamnet-plus-r101",
            "HamNet+ ResNet-101",
            "ham-nmf",
            partial(resnet, 101, concat_input=True),
            **wide,
        ),
        Model(
            "hamnet-voc-r50",
            "HamNet (VOC) ResNet-50",
            "ham-nmf",
            partial(resnet, 50, paper=True),
            usual={"all": {"version": "v2"}},
            size=(513, 513),
            align_corners=True,
        ),
        Model(
            "hamnet-voc-r101",
            "HamNet (VOC) ResNet-101",
            "ham-nmf",
            partial(resnet, 101, paper=True),
            usual={"all": {"version": "v2"}},
            size=(513, 513),
            align_corners=True,
        ),
    ]
    light = [
        ("tiny", 480, 512),
        ("small", 512, 512),
        ("base", 512, 512),
        ("large", 512, 512),
        ("huge", 512, 512),
    ]
    for size, width, channels in light:
        title = f"Light-Ham VAN-{size.capitalize()}"
        found.append(Model(f"light-ham-van-{size}", title, "light-ham", partial(van, size, width, channels)))
    for size, rank in (("tiny", 16), ("small", 32)):
        title = f"Light-Ham-D256 VAN-{size.capitalize()}"
        parts = partial(van, size, 256, 256)
        found.append(Model(f"light-ham-d256-van-{size}", title, "light-ham", parts, {"rank": rank}))
    for size in ("tiny", "small", "base", "large"):
        title = f"HamNet VAN-{size.capitalize()}-OS8"
        found.append(Model(f"hamnet-van-{size}-os8", title, "light-ham", partial(van_os8, size)))
    for size, width, rank in (("t", 256, 16), ("s", 256, 16), ("b", 512, 64), ("l", 1024, 64)):
        title = f"SegNeXt-{size.upper()}"
        parts = partial(segnext, size, width)
        found.append(Model(f"segnext-{size}", title, "light-ham", parts, {"rank": rank}))
    return found


MODELS = {model.name: model for model in models()}
