"""Double attention: gather second-order features of the image, then hand them out."""

from __future__ import annotations

import torch
from torch import Tensor

from blocks.base import ContextBlock, Conv1x1, flat, require_positive
from blocks.registry import Paper, register

A2_NETS = Paper(
    title="A^2-Nets: Double Attention Networks",
    authors="Yunpeng Chen, Yannis Kalantidis, Jianshu Li, Shuicheng Yan, Jiashi Feng",
    year=2018,
    venue="NeurIPS",
    url="https://arxiv.org/abs/1810.11579",
    bibtex="""@inproceedings{chen2018a2nets,
  title     = {{A}$^2$-Nets: Double Attention Networks},
  author    = {Chen, Yunpeng and Kalantidis, Yannis and Li, Jianshu and Yan, Shuicheng and Feng, Jiashi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}""",
)


@register(
    "a2",
    title="Double attention",
    family="linear attention",
    summary="pools c_n descriptors over all pixels, then mixes them for each pixel",
    complexity="O(n d^2)",
    formula="Y = X + W_o A softmax_n(B)^T softmax_c(V)",
    paper=A2_NETS,
)
class DoubleAttention(ContextBlock):
    """Gathering attention over the pixels, distribution attention over the descriptors.

    Args:
        channels: C of the input.
        c_m: width of what is gathered; None: C.
        c_n: number of descriptors; None: C.
    """

    def __init__(self, channels: int, *, c_m: int | None = None, c_n: int | None = None) -> None:
        super().__init__(channels)
        self.c_m = channels if c_m is None else c_m
        self.c_n = channels if c_n is None else c_n
        require_positive(c_m=self.c_m, c_n=self.c_n)
        self.feature = Conv1x1(channels, self.c_m)
        self.gather = Conv1x1(channels, self.c_n)
        self.distribute = Conv1x1(channels, self.c_n)
        self.out = Conv1x1(self.c_m, channels)

    def forward(self, x: Tensor) -> Tensor:
        gather = torch.softmax(flat(self.gather(x)), dim=2)  # (B, c_n, N), over the pixels
        descriptors = flat(self.feature(x)) @ gather.mT  # (B, c_m, c_n)
        distribute = torch.softmax(flat(self.distribute(x)), dim=1)  # (B, c_n, N), over descriptors
        context = descriptors @ distribute  # (B, c_m, N)
        return x + self.out(context.reshape(x.shape[0], self.c_m, *x.shape[2:]))

    def macs(self, height: int, width: int) -> int:
        c, m, k, n = self.channels, self.c_m, self.c_n, height * width
        return 2 * n * c * (m + k) + 2 * n * m * k

    def param_count(self) -> int:
        c, m, k = self.channels, self.c_m, self.c_n
        return 2 * c * (m + k) + m + 2 * k + c
