"""Linear attention: the softmax replaced by a product of positive features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blocks.multihead import MultiHead, kernel_attention
from blocks.registry import Paper, register

LINEAR_TRANSFORMER = Paper(
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    authors="Angelos Katharopoulos, Apoorv Vyas, Nikolaos Pappas, François Fleuret",
    year=2020,
    venue="ICML",
    url="https://arxiv.org/abs/2006.16236",
    bibtex="""@inproceedings{katharopoulos2020transformers,
  title     = {Transformers are {RNN}s: Fast Autoregressive Transformers with Linear Attention},
  author    = {Katharopoulos, Angelos and Vyas, Apoorv and Pappas, Nikolaos and Fleuret, Fran{\\c{c}}ois},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}""",
)


@register(
    "linear-attn",
    title="Linear attention",
    family="linear attention",
    summary="weights are products of the positive features elu + 1, so that keys meet values first",
    complexity="O(n d^2)",
    formula="Y = X + W_o (V phi(K)^T) phi(Q) / (1^T phi(K)^T phi(Q));  phi(x) = elu(x) + 1, in every head",
    paper=LINEAR_TRANSFORMER,
)
class LinearAttention(MultiHead):
    """The paper's attention without a mask (its equations 4 to 7), in heads over pixels.

    The official code adds 1e-6 to the denominator; here it is not let below 1e-6, so that the
    weights sum to one.

    Args:
        channels: C of the input.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernel_attention(F.elu(q).add_(1), F.elu(k).add_(1), v)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 4 * n * c * c + n * c * (2 * self.head_dim + 1)
