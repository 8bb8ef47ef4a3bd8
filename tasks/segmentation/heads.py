"""The slot: decode heads of mmsegmentation that hold any block of the catalogue.

They are registered with mmsegmentation under their own names, so that a config of one's own can say
`decode_head=dict(type="ContextHead", block="ccnet", ...)` after `custom_imports =
dict(imports=["tasks.segmentation.heads"])`. Backbones are here too, where mmsegmentation lacks them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blocks
from tasks.segmentation import compat
from tasks.van import VAN

compat.prepare()

from mmcv.cnn import ConvModule  # noqa: E402
from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from mmseg.models.segmentors import EncoderDecoder  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402


@MODELS.register_module()
class ContextHead(BaseDecodeHead):
    """Squeeze, block, align and classifier: the head of HamNet with any block in it.

    Args:
        block: a block's name, such as "ham-nmf".
        block_options: the options it is created with.
        block_channels: its channels; None: `channels`.
        kernel_size: of the convolutions before and behind the block.
        concat_input: whether a further convolution sees the head's input beside its output (HamNet+).
        others: those of mmsegmentation's `BaseDecodeHead`; with `input_transform="resize_concat"` and
            lists in `in_channels` and `in_index` several stages are resized to the first and concatenated.
    """

    def __init__(
        self,
        block: str = "ham-nmf",
        block_options: dict[str, Any] | None = None,
        block_channels: int | None = None,
        kernel_size: int = 3,
        concat_input: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        width = block_channels or self.channels
        self.squeeze = self.convolution(self.in_channels, width, kernel_size)
        self.context = blocks.create(block, width, **(block_options or {}))
        self.align = self.convolution(width, self.channels, kernel_size)
        self.fuse: nn.Module | None = None
        if concat_input:
            self.fuse = self.convolution(self.in_channels + self.channels, self.channels, kernel_size)

    def convolution(self, inputs: int, outputs: int, kernel_size: int) -> nn.Module:
        return ConvModule(
            inputs,
            outputs,
            kernel_size,
            padding=kernel_size // 2,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )

    def forward(self, inputs: Any) -> Tensor:
        """Maps of the backbone's stages -> logits (B, classes, H, W)."""
        x = self._transform_inputs(inputs)
        y = self.align(self.context(self.squeeze(x)))
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], dim=1))
        return self.cls_seg(y)


@MODELS.register_module()
class LightContextHead(ContextHead):
    """The head of Light-Ham and SegNeXt: stages 2 to 4 meet at the second's size, 1x1 convolutions."""

    def __init__(
        self,
        in_channels: list[int],
        *,
        block: str = "light-ham",
        kernel_size: int = 1,
        norm_cfg: dict[str, Any] | None = None,
        in_index: tuple[int, ...] = (1, 2, 3),
        **others: Any,
    ) -> None:
        super().__init__(
            block,
            in_channels=in_channels,
            in_index=in_index,
            input_transform="resize_concat",
            kernel_size=kernel_size,
            norm_cfg=norm_cfg or {"type": "GN", "num_groups": 32},
            **others,
        )


@MODELS.register_module()
class ContextSegmentor(EncoderDecoder):
    """mmsegmentation's segmentor, which can be scored on several scales, each also flipped.

    Args:
        scales: of the image after normalisation and padding; none: it is scored as it is.
        scoring: "logits" are summed, as HamNet's code does, or "softmax" summed, which ranks classes as mmsegmentation's mean does.
        others: those of `EncoderDecoder`.
    """

    def __init__(self, scales: tuple[float, ...] = (), scoring: str = "logits", **others: Any) -> None:
        super().__init__(**others)
        self.scales, self.scoring = tuple(scales), scoring

    def inference(self, inputs: Tensor, batch_img_metas: Any) -> Tensor:
        """Images (B, 3, H, W) -> scores (B, classes, H, W)."""
        if not self.scales:
            return super().inference(inputs, batch_img_metas)
        total = inputs.new_zeros(())
        for scale in self.scales:
            scaled = F.interpolate(
                inputs, scale_factor=scale, mode="bilinear", align_corners=self.align_corners
            )
            for flipped in (False, True):
                logits = super().inference(scaled.flip(3) if flipped else scaled, batch_img_metas)
                logits = logits.flip(3) if flipped else logits
                logits = F.interpolate(
                    logits, inputs.shape[2:], mode="bilinear", align_corners=self.align_corners
                )
                total = total + (logits if self.scoring == "logits" else logits.softmax(1))
        return total


MODELS.register_module(name="VAN", module=VAN)


@MODELS.register_module()
class LocalNet(nn.Module):
    """Three strided 3x3 convolutions: (B, 3, H, W) -> [(B, 64, H / 8, W / 8)].

    Each output sees 15 pixels across: whatever lies farther away, the block behind must bring.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
                for before, width in zip(inputs, widths, strict=True)
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


def build(config: dict[str, Any]) -> nn.Module:
    """The network that a config of `tasks.segmentation.models` describes."""
    from mmengine.config import ConfigDict
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS.build(ConfigDict(config))
