"""Hamburgers: a matrix decomposition ("ham") between two 1x1 convolutions ("bread").

Source: Geng et al., "Is Attention Better Than Matrix Decomposition?", ICLR 2021. "v1" is the
paper's block, "v2" puts a convolution ("cheese") after the ham, "v2+" learns the weights of both
branches. "light-ham" is the variant of the authors' Light-Ham heads, also used by SegNeXt.
The momentum of batch normalisation belongs to a training recipe (HamNet: 3e-4) and is torch's here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from blocks.base import ContextBlock, Conv1x1, conv_bn_relu, he_fan_out_, require_divisible, require_positive
from blocks.decomposition import CD, NMF, VQ, Decomposition, Dictionary, Gradient
from blocks.registry import ExportLimit, Paper, register

HAMBURGER = Paper(
    title="Is Attention Better Than Matrix Decomposition?",
    authors="Zhengyang Geng, Meng-Hao Guo, Hongxu Chen, Xia Li, Ke Wei, Zhouchen Lin",
    year=2021,
    venue="ICLR",
    url="https://arxiv.org/abs/2109.04553",
    bibtex="""@inproceedings{geng2021attention,
  title     = {Is Attention Better Than Matrix Decomposition?},
  author    = {Geng, Zhengyang and Guo, Meng-Hao and Chen, Hongxu and Li, Xia and Wei, Ke and Lin, Zhouchen},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}""",
)


class Hamburger(ContextBlock):
    """Lower bread, ham, (cheese,) upper bread, residual.

    Args:
        channels: C of the input.
        version: "v1", "v2" or "v2+".
        latent: width d between the breads, all heads together; None: `channels`.
        rank: number r of bases.
        heads: splits of the latent width, each decomposed alone.
        train_steps, eval_steps: iterations in training and in evaluation.
        gradient: "bptt" differentiates through all iterations; "one-step" takes the result of the
            iterations as a constant and differentiates the last update of the codes alone.
        dictionary: where the first bases come from. "random": drawn for every image and head at
            each training forward, fixed in evaluation; "frozen": always the same; "learned": a
            moving average of the final bases, updated in training only.
        spatial: True: the columns that are explained are pixels; False: they are channels.
        impl: how the iterations are calculated. "auto": on a CPU by tiles of columns that fit its
            caches; "reference": by products of whole matrices; "triton" (NMF alone): by a kernel
            that reads the input once per iteration, on NVIDIA GPUs, without "bptt"; in float64, which
            it lacks, as "auto". Tiles depend on the number of threads, and so do the last digits.
        cheese_factor: by how much the cheese narrows the latent width ("v2+").
        dual: two hams side by side, one of pixels and one of channels, `latent` wide each ("v2+").

    Raises:
        ValueError: for widths that do not divide, and for "v2+" options in another version.
    """

    ham_class: ClassVar[type[Decomposition]]

    def __init__(
        self,
        channels: int,
        *,
        version: Literal["v1", "v2", "v2+"] = "v1",
        latent: int | None = None,
        rank: int = 64,
        heads: int = 1,
        train_steps: int = 6,
        eval_steps: int = 6,
        gradient: Gradient = "one-step",
        dictionary: Dictionary = "random",
        spatial: bool = True,
        impl: Literal["auto", "reference"] = "auto",
        cheese_factor: int = 1,
        dual: bool = False,
        **ham_options: Any,
    ) -> None:
        super().__init__(channels)
        latent = channels if latent is None else latent
        require_positive(latent=latent, cheese_factor=cheese_factor)
        if version != "v2+" and (cheese_factor != 1 or dual):
            raise ValueError(f"cheese_factor and dual belong to version='v2+', not {version!r}")
        if dual and (not spatial or dictionary == "learned"):
            raise ValueError(
                "dual=True has a view of pixels and one of channels: leave spatial=True, and "
                "dictionary='random' or 'frozen'"
            )
        shared: dict[str, Any] = {
            "rank": rank,
            "heads": heads,
            "train_steps": train_steps,
            "eval_steps": eval_steps,
            "gradient": gradient,
            "dictionary": dictionary,
            "impl": impl,
        }
        views = (True, False) if dual else (spatial,)
        width = latent * len(views)
        require_divisible(latent, cheese_factor, "latent channels", by="cheese_factor")
        self.version, self.latent = version, latent
        self.width, self.narrow = width, width // (cheese_factor * len(views))

        self.lower_bread = Conv1x1(channels, width)
        self.hams = nn.ModuleList(
            self.ham_class(latent, spatial=view, **shared, **ham_options) for view in views
        )
        if version == "v1":
            self.cheese: nn.Module = nn.Identity()
            self.upper_bread: nn.Module = nn.Sequential(Conv1x1(width, channels, bias=False), self.norm())
        else:
            self.cheese = conv_bn_relu(width, self.narrow)
            self.upper_bread = Conv1x1(self.narrow, channels, bias=False)
        if version == "v2+":
            self.ham_gate = nn.Parameter(torch.zeros(1))
            self.shortcut_gate = nn.Parameter(torch.ones(1))
        he_fan_out_(self)

    def norm(self) -> nn.Module:
        """The normalisation after v1's upper bread."""
        return nn.BatchNorm2d(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.version == "v2+":
            return torch.relu_(self.ham_gate * self.between_breads(x) + self.shortcut_gate * x)
        return torch.relu_(x + self.between_breads(x))

    def branch(self, x: Tensor) -> Tensor:
        if self.version == "v2+":
            return self.ham_gate * self.between_breads(x) + (self.shortcut_gate - 1) * x
        return self.between_breads(x)

    def between_breads(self, x: Tensor) -> Tensor:
        """From the lower bread to the upper one, both included: (B, C, H, W) -> (B, C, H, W)."""
        return self.upper_bread(self.cheese(self.reconstruct(self.lower_bread(x))))

    def reconstruct(self, latent: Tensor) -> Tensor:
        """The latent map as the hams explain it, (B, width, H, W)."""
        if self.ham_class is NMF:  # its factors cannot explain negative values
            latent = latent.relu_()
        views = latent.split(self.latent, dim=1)
        parts = [ham(view) for ham, view in zip(self.hams, views, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def macs(self, height: int, width: int) -> int:
        n, bread = height * width, 2 * self.channels * self.width
        if self.version != "v1":
            bread = self.channels * self.width + self.width * self.narrow + self.narrow * self.channels
        return n * bread + sum(ham.macs(height, width) for ham in cast(Iterable[Decomposition], self.hams))

    def spared_macs(self, height: int, width: int) -> int:
        return sum(ham.spared_macs(height, width) for ham in cast(Iterable[Decomposition], self.hams))

    def param_count(self) -> int:
        c, w, q = self.channels, self.width, self.narrow
        lower = c * w + w
        if self.version == "v1":
            return lower + w * c + 2 * c
        return lower + w * q + 2 * q + q * c + (2 if self.version == "v2+" else 0)


@register(
    "ham-nmf",
    title="Hamburger with non-negative matrix factorisation",
    family="decomposition",
    summary="explains the feature map by a few non-negative bases, found by multiplicative updates",
    complexity="O(n d^2 + n d r)",
    formula="Y = ReLU(X + BN(W_u D C^T)),  X' = ReLU(W_l X);  C *= X'^T D / C D^T D,  D *= X' C / D C^T C",
    paper=HAMBURGER,
    limits=(ExportLimit("ONNX", "it has no Triton kernels", only=("impl", "triton")),),
)
class HamNMF(Hamburger):
    ham_class = NMF

    def __init__(
        self, channels: int, *, impl: Literal["auto", "reference", "triton"] = "auto", **options: Any
    ) -> None:
        super().__init__(channels, impl=cast(Any, impl), **options)


@register(
    "ham-cd",
    title="Hamburger with concept decomposition",
    family="decomposition",
    summary="clusters the feature map by cosine, then fits codes by ridge least squares",
    complexity="O(n d^2 + n d r)",
    formula="Y = ReLU(X + BN(W_u D C^T)),  X' = W_l X;  C = softmax(cos(X', D) / T),  D = unit(X' C);  at last C = X'^T D (D^T D + b I)^-1",
    paper=HAMBURGER,
    limits=(ExportLimit("ONNX", "it has no Cholesky factorisation"),),
)
class HamCD(Hamburger):
    """Args: inv_t: inverse temperature of the assignment. ridge: of the least squares."""

    ham_class = CD

    def __init__(self, channels: int, *, inv_t: float = 100.0, ridge: float = 0.1, **options: Any) -> None:
        super().__init__(channels, inv_t=inv_t, ridge=ridge, **options)


@register(
    "ham-vq",
    title="Hamburger with soft vector quantisation",
    family="decomposition",
    summary="replaces each pixel by a soft mixture of cluster means",
    complexity="O(n d^2 + n d r)",
    formula="Y = ReLU(X + BN(W_u D C^T)),  X' = W_l X;  C = softmax(cos(X', D) / T),  D = X' C / sum(C)",
    paper=HAMBURGER,
    limits=(
        ExportLimit("ONNX", "it has no inverse error function", only=("spatial", False)),
        ExportLimit("ONNX", "it has no inverse error function", only=("dual", True)),
    ),
)
class HamVQ(Hamburger):
    """Args: inv_t: inverse temperature of the assignment."""

    ham_class = VQ

    def __init__(self, channels: int, *, inv_t: float = 100.0, **options: Any) -> None:
        super().__init__(channels, inv_t=inv_t, **options)


@register(
    "light-ham",
    title="Hamburger of the Light-Ham heads",
    family="decomposition",
    summary="NMF differentiated through all its steps, with group normalisation",
    complexity="O(n d^2 + n d r)",
    formula="Y = ReLU(X + GN(W_u D C^T));  D, C = NMF(ReLU(W_l X)), back-propagated through all T steps",
    paper=HAMBURGER,
)
class LightHam(Hamburger):
    """`ham-nmf` v1 as in the Light-Ham and SegNeXt heads: BPTT, 7 steps in evaluation, GroupNorm.

    There are 32 groups, or the largest divisor of `channels` that 32 allows.
    """

    ham_class = NMF

    def __init__(
        self,
        channels: int,
        *,
        rank: int = 64,
        heads: int = 1,
        train_steps: int = 6,
        eval_steps: int = 7,
        gradient: Gradient = "bptt",
        dictionary: Dictionary = "random",
        spatial: bool = True,
    ) -> None:
        super().__init__(
            channels,
            rank=rank,
            heads=heads,
            train_steps=train_steps,
            eval_steps=eval_steps,
            gradient=gradient,
            dictionary=dictionary,
            spatial=spatial,
        )
        if self.lower_bread.bias is not None:
            nn.init.zeros_(self.lower_bread.bias)

    def norm(self) -> nn.Module:
        return nn.GroupNorm(math.gcd(32, self.channels), self.channels)
