"""Squeeze and excitation: the image's mean scales its channels."""

from __future__ import annotations

from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, require_positive
from blocks.registry import Paper, register

SE = Paper(
    title="Squeeze-and-Excitation Networks",
    authors="Jie Hu, Li Shen, Gang Sun",
    year=2018,
    venue="CVPR",
    url="https://arxiv.org/abs/1709.01507",
    bibtex="""@inproceedings{hu2018squeeze,
  title     = {Squeeze-and-Excitation Networks},
  author    = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}""",
)

NARROWEST = 8


@register(
    "se",
    title="Squeeze and excitation",
    family="pooling",
    summary="scales every channel by a gate computed from the image's mean",
    complexity="O(n d)",
    formula="Y = X sigmoid(W_2 ReLU(W_1 mean(X)))",
    paper=SE,
)
class SqueezeExcitation(ContextBlock):
    """Channel gates from the global average; there is no residual besides the gate.

    The hidden layer has C / reduction channels, but at least min(C, 8): of one
    or two ReLUs all may be dead. The gate is the paper's sigmoid, mmsegmentation's a piecewise linear one.

    Args:
        channels: C of the input.
        reduction: by how much the hidden layer is narrower than C.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__(channels)
        require_positive(reduction=reduction)
        self.inner = max(channels // reduction, min(channels, NARROWEST))
        self.gate = nn.Sequential(
            Conv1x1(channels, self.inner), nn.ReLU(inplace=True), Conv1x1(self.inner, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))

    def macs(self, height: int, width: int) -> int:
        return 2 * self.channels * self.inner

    def param_count(self) -> int:
        return 2 * self.channels * self.inner + self.inner + self.channels
