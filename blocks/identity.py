"""The control: no context at all."""

from __future__ import annotations

from torch import Tensor

from blocks.base import ContextBlock
from blocks.registry import register


@register(
    "none",
    title="No context",
    family="control",
    summary="hands its input on; what a network is worth without a context block",
    complexity="O(1)",
    formula="Y = X",
    paper=None,
)
class NoContext(ContextBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x

    def macs(self, height: int, width: int) -> int:
        return 0

    def param_count(self) -> int:
        return 0
