"""Agent attention: a few pooled queries look at the image and tell every pixel."""

from __future__ import annotations

from torch import Tensor, nn

from blocks.base import require_positive
from blocks.multihead import MultiHead, scaled, softmax_attention
from blocks.pooling import pooled_map
from blocks.registry import Paper, register

AGENT = Paper(
    title="Agent Attention: On the Integration of Softmax and Linear Attention",
    authors="Dongchen Han, Tianzhu Ye, Yizeng Han, Zhuofan Xia, Siyuan Pan, Pengfei Wan, Shiji Song, Gao Huang",
    year=2024,
    venue="ECCV",
    url="https://arxiv.org/abs/2312.08874",
    bibtex="""@inproceedings{han2024agent,
  title     = {Agent Attention: On the Integration of Softmax and Linear Attention},
  author    = {Han, Dongchen and Ye, Tianzhu and Han, Yizeng and Xia, Zhuofan and Pan, Siyuan and Wan, Pengfei and Song, Shiji and Huang, Gao},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}""",
)


@register(
    "agent",
    title="Agent attention",
    family="linear attention",
    summary="7 x 7 pooled queries gather from all pixels by softmax; pixels read from them by softmax",
    complexity="O(n d^2 + n a d)",
    formula="Y = X + W_o (A' softmax(Q^T A / sqrt(d_h))^T + DWC(V)), in every head;  A = pool(Q),  A' = V softmax(A^T K / sqrt(d_h))^T",
    paper=AGENT,
)
class AgentAttention(MultiHead):
    """Agent tokens, the pooled queries, stand between queries and keys.

    The biases of position that the official code adds to both score maps are left out: they are
    learned for one size of image. An image smaller than the agents' map is not enlarged.

    Args:
        channels: C of the input.
        agents: side of the map of agents, which are its square.
        conv: add a depthwise 3x3 convolution of the values, which the paper does for the variety
            of features that linear attention lacks.
        head_dim: channels of a head, a divisor of C; None: the largest common divisor of C and 64.
    """

    def __init__(
        self, channels: int, *, agents: int = 7, conv: bool = True, head_dim: int | None = None
    ) -> None:
        super().__init__(channels, head_dim=head_dim)
        require_positive(agents=agents)
        self.agents = agents
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        query, value = self.query(x), self.value(x)
        agents = scaled(self.split(pooled_map(query, self.agents)))  # (B, heads, A, d)
        context = self.mediate(self.split(query), agents, self.split(self.key(x)), self.split(value))
        context = context.mT.reshape(x.shape)
        return x + self.out(context if self.local is None else context + self.local(value))

    def mediate(self, q: Tensor, agents: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gathered = softmax_attention(agents, k, v)  # (B, heads, A, d)
        return softmax_attention(q, agents, gathered)

    def macs(self, height: int, width: int) -> int:
        c, n = self.channels, height * width
        agents = min(self.agents, height) * min(self.agents, width)
        return 4 * n * c * c + 4 * n * agents * c + (9 * n * c if self.local is not None else 0)

    def param_count(self) -> int:
        return super().param_count() + (10 * self.channels if self.local is not None else 0)
