"""Global filter: a learned multiplication of the image's spectrum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, require_positive, wide_precision
from blocks.registry import ExportLimit, Paper, register

GFNET = Paper(
    title="Global Filter Networks for Image Classification",
    authors="Yongming Rao, Wenliang Zhao, Zheng Zhu, Jiwen Lu, Jie Zhou",
    year=2021,
    venue="NeurIPS",
    url="https://arxiv.org/abs/2107.00645",
    bibtex="""@inproceedings{rao2021global,
  title     = {Global Filter Networks for Image Classification},
  author    = {Rao, Yongming and Zhao, Wenliang and Zhu, Zheng and Lu, Jiwen and Zhou, Jie},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
)


@register(
    "fft",
    title="Global filter (FFT)",
    family="token mixing",
    summary="multiplies the 2-D spectrum of every channel by a learned filter: a convolution as large as the image",
    complexity="O(n d^2 + n d log n)",
    formula="Y = X + W_o IFFT(K * FFT(X))",
    paper=GFNET,
    limits=(ExportLimit("ONNX", "its runtime mistakes the size of an open half spectrum", sizes=True),),
)
class GlobalFilter(ContextBlock):
    """The global filter layer of GFNet, and a 1x1 convolution in place of the MLP that follows it there.

    The filter K is complex, one value a channel and frequency of a map of `size` x `size`. For
    another size its real and imaginary parts are interpolated, bilinearly and from corner to corner
    of the half spectrum as the FFT lays it out (row frequencies 0 up, then the negative ones), as
    DFFormer (Tatsunami 2023) does bicubically: at `size` it is the layer as published. FFTs run in
    float32 at least.

    MACs count convolutions and matrix products, in this catalogue: FFTs and the filter count 0, and
    what is left is the output projection.

    Args:
        channels: C of the input.
        size: side of the map whose spectrum the filter is stored for.
    """

    def __init__(self, channels: int, *, size: int = 14) -> None:
        super().__init__(channels)
        require_positive(size=size)
        self.size = size
        self.filter = nn.Parameter(torch.randn(channels, 2, size, size // 2 + 1) * 0.02)
        self.out = Conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        with wide_precision(x) as dtype:
            spectrum = torch.fft.rfft2(x.to(dtype), norm="ortho")  # (B, C, H, W // 2 + 1)
            mixed = torch.fft.irfft2(spectrum * self.filter_like(spectrum), s=x.shape[2:], norm="ortho")
        return x + self.out(mixed.to(x.dtype))

    def filter_like(self, spectrum: Tensor) -> Tensor:
        """The filter at the size of a spectrum, complex: (C, H, W // 2 + 1)."""
        size = spectrum.shape[2:]
        parts = self.filter.to(spectrum.real.dtype)
        if parts.shape[2:] != size:
            parts = F.interpolate(parts, size, mode="bilinear", align_corners=True)
        return torch.complex(parts[:, 0], parts[:, 1])

    def macs(self, height: int, width: int) -> int:
        return height * width * self.channels**2

    def param_count(self) -> int:
        c = self.channels
        return 2 * c * self.size * (self.size // 2 + 1) + c * (c + 1)
