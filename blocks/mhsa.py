"""Multi-head self-attention of today's backbones, by PyTorch's fused kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from blocks.multihead import MultiHead
from blocks.registry import Paper, register

VIT = Paper(
    title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    authors="Alexey Dosovitskiy, Lucas Beyer, Alexander Kolesnikov, Dirk Weissenborn, Xiaohua Zhai, "
    "Thomas Unterthiner, Mostafa Dehghani, Matthias Minderer, Georg Heigold, Sylvain Gelly, "
    "Jakob Uszkoreit, Neil Houlsby",
    year=2021,
    venue="ICLR",
    url="https://arxiv.org/abs/2010.11929",
    bibtex="""@inproceedings{dosovitskiy2021vit,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly, Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}""",
)


@register(
    "mhsa",
    title="Multi-head self-attention",
    family="attention",
    summary="heads of 64 channels attend to every pixel, in a fused kernel that forms no n x n map",
    complexity="O(n d^2 + n^2 d)",
    formula="Y = X + W_o [V_1 softmax(Q_1^T K_1 / sqrt(d_h))^T; ...; V_h softmax(Q_h^T K_h / sqrt(d_h))^T]",
    paper=VIT,
)
class MultiHeadSelfAttention(MultiHead):
    """Scaled dot-product attention in heads (Vaswani 2017) over pixels, as Vision Transformers have it.

    Against `self-attn`, which is the Hamburger paper's: several heads, scaled scores, and the fused
    kernel (FlashAttention, Dao 2022, where the device has it). The layer alone: no normalisation
    before it, no MLP behind it, no code of positions. MACs are those of the plain products, 2 n^2 C,
    whatever the kernel does.

    Args:
        channels: C of the input.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
            Fused kernels want a multiple of 8.
    """

    def split(self, x: Tensor) -> Tensor:
        # Tokens must be contiguous: strided ones fall back to the N x N map without a word.
        return super().split(x).contiguous()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        return 4 * n * c * c + 2 * n * n * c
