"""Global context: one attention map for all pixels, and a bottleneck behind it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, flat, require_positive
from blocks.registry import Paper, register

GCNET = Paper(
    title="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond",
    authors="Yue Cao, Jiarui Xu, Stephen Lin, Fangyun Wei, Han Hu",
    year=2019,
    venue="ICCV Workshops",
    url="https://arxiv.org/abs/1904.11492",
    bibtex="""@inproceedings{cao2019gcnet,
  title     = {{GCNet}: Non-local Networks Meet Squeeze-Excitation Networks and Beyond},
  author    = {Cao, Yue and Xu, Jiarui and Lin, Stephen and Wei, Fangyun and Hu, Han},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision Workshops},
  year      = {2019}
}""",
)


@register(
    "gcnet",
    title="Global context block",
    family="pooling",
    summary="one attention-weighted mean of the image, through a bottleneck, added to every pixel",
    complexity="O(n d)",
    formula="Y = X + W_2 ReLU(LN(W_1 c));  c = X softmax_n(w X)^T;  with mul: Y = X sigmoid(...)",
    paper=GCNET,
)
class GlobalContext(ContextBlock):
    """Global context block: pool, transform, fuse.

    The last convolution starts at zero: added, the block starts as the identity; multiplied, as X / 2.

    The bottleneck has at least two channels. The official code gives it none where C * ratio is below
    one; layer normalisation would make nothing of a single one. The official code needs a contiguous
    input; this does not.

    Args:
        channels: C of the input.
        ratio: width of the bottleneck in parts of C. Detection uses 1/16.
        pooling: weigh the pixels by a softmax over them, or take their mean.
        fusion: add the context to the pixels, or multiply them by its sigmoid.
    """

    def __init__(
        self,
        channels: int,
        *,
        ratio: float = 0.25,
        pooling: Literal["attention", "average"] = "attention",
        fusion: Literal["add", "mul"] = "add",
    ) -> None:
        super().__init__(channels)
        require_positive(ratio=ratio)
        self.inner = max(int(channels * ratio), 2)
        self.pooling, self.fusion = pooling, fusion
        # Plain convolutions: where there is one channel or one pixel, Conv1x1's choice would only take time.
        if pooling == "attention":
            self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, self.inner, 1),
            nn.LayerNorm([self.inner, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.inner, channels, 1),
        )
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        context = self.transform(self.pooled(x))  # (B, C, 1, 1)
        return x + context if self.fusion == "add" else x * torch.sigmoid(context)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        if self.pooling == "average":
            return x.mean((2, 3), keepdim=True)
        weights = torch.softmax(flat(self.mask(x)), dim=2)  # (B, 1, N)
        return (flat(x) @ weights.mT)[..., None]

    def macs(self, height: int, width: int) -> int:
        c, inner, n = self.channels, self.inner, height * width
        return (2 * n * c if self.pooling == "attention" else 0) + 2 * c * inner

    def param_count(self) -> int:
        c, inner = self.channels, self.inner
        return (c + 1 if self.pooling == "attention" else 0) + 2 * c * inner + 3 * inner + c
