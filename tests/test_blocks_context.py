"""Blocks give what mmsegmentation and mmcv give with the same weights, where nothing of theirs is mended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import blocks
from blocks.pooling import PooledNorm
from tasks.segmentation import compat
from tests.test_blocks_reference import randomised

compat.prepare()

from mmcv.cnn import ContextBlock as MmcvContext  # noqa: E402
from mmcv.cnn import ConvModule  # noqa: E402
from mmseg.models.decode_heads import ann_head, apc_head, dm_head, isa_head, ocr_head, psp_head  # noqa: E402
from mmseg.models.decode_heads.aspp_head import ASPPModule  # noqa: E402
from mmseg.models.decode_heads.dnl_head import DisentangledNonLocal2d  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # their builders warn of themselves

C, WIDTH, SIDES = 12, 5, (9, 7)
LAYERS = {"conv_cfg": None, "norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU"}}
Theirs = Callable[[Tensor], Tensor]


def given(theirs: nn.Module, *ours: nn.Module) -> nn.Module:
    """Their module with the weights of our layers, which come in the same order."""

    def layers(*modules: nn.Module) -> list[nn.Module]:
        inner = [each for module in modules for each in module.modules()]
        return [each for each in inner if not list(each.children()) and each.state_dict()]

    for target, source in zip(layers(theirs), layers(*ours), strict=True):
        target.load_state_dict(source.state_dict())
    return theirs.double().eval()


def joined(fuse: nn.Module, *maps: Tensor) -> Tensor:
    return fuse(torch.cat(maps, dim=1))


def conv_module(ours: nn.Module, inputs: int, outputs: int = C, kernel: int = 1) -> nn.Module:
    return given(ConvModule(inputs, outputs, kernel, padding=kernel // 2, **LAYERS), ours)


def gcnet(block: nn.Module, fusion: str = "channel_add") -> Theirs:
    return given(MmcvContext(C, 1 / 4, fusion_types=(fusion,)), block)


def dnl(block: nn.Module) -> Theirs:
    theirs = DisentangledNonLocal2d(C, norm_cfg=LAYERS["norm_cfg"], temperature=0.05)
    order = block.value, block.out, block.query, block.key, block.mask
    return given(theirs, *order)


def ann(block: nn.Module) -> Theirs:
    theirs = ann_head.APNB(C, WIDTH, C, (1,), (1, 3, 6, 8), **LAYERS)
    return given(theirs, block.query, block.value, block.out, block.fuse)


def isa(block: nn.Module) -> Theirs:
    """The head without its first convolution and its classifier."""
    theirs = isa_head.ISAHead(
        isa_channels=WIDTH, in_channels=C, channels=C, num_classes=3, norm_cfg=LAYERS["norm_cfg"]
    )
    theirs.in_conv, theirs.conv_seg, theirs.dropout = nn.Identity(), nn.Identity(), None
    order = [
        each for part in (block.far, block.near) for each in (part.key, part.query, part.value, part.out)
    ]
    given(theirs, *order, block.fuse)
    return lambda x: theirs([x])


def ocr(block: nn.Module) -> Theirs:
    attend = ocr_head.ObjectAttentionBlock(C, WIDTH, 1, **LAYERS)
    given(attend, block.key, block.query, block.value, block.out, block.fuse)
    gather = ocr_head.SpatialGatherModule(1)
    return lambda x: attend(x, gather(x, block.classify(x)))


def psp(block: nn.Module) -> Theirs:
    pyramid = given(psp_head.PPM((1, 2, 3, 6), C, WIDTH, align_corners=False, **LAYERS), block.levels)
    fuse = conv_module(block.fuse, C + 4 * WIDTH, kernel=3)
    return lambda x: joined(fuse, x, *pyramid(x))


def aspp(block: nn.Module) -> Theirs:
    branches = given(ASPPModule((1, 6, 12, 18), C, WIDTH, **LAYERS), block.branches)
    image = conv_module(block.image, C, WIDTH)
    fuse = conv_module(block.fuse, 5 * WIDTH, kernel=3)
    return lambda x: joined(fuse, image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *SIDES), *branches(x))


def apc(block: nn.Module) -> Theirs:
    """Their modules and our fusion, as with the next."""
    modules = nn.ModuleList()
    for level in block.levels:
        theirs = apc_head.ACM(level.side, True, C, WIDTH, **LAYERS)
        order = level.parts, level.local, level.image, level.affinity, level.context, level.out
        modules.append(given(theirs, *order))
    return lambda x: x + joined(block.out, *(each(x) for each in modules))


def dm(block: nn.Module) -> Theirs:
    modules = nn.ModuleList()
    for each in block.filters:
        theirs = dm_head.DCM(each.side, False, C, WIDTH, **LAYERS)
        modules.append(given(theirs, each.kernels, each.reduce, each.norm))
    return lambda x: x + joined(block.out, *(each(x) for each in modules))


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("gcnet", {}, gcnet),
        ("gcnet", {"fusion": "mul"}, lambda block: gcnet(block, "channel_mul")),
        ("dnl", {}, dnl),
        ("ann", {"width": WIDTH}, ann),
        ("isa", {"width": WIDTH}, isa),
        ("ocr", {"width": WIDTH, "regions": 4}, ocr),
        ("psp", {"width": WIDTH}, psp),
        ("aspp", {"width": WIDTH}, aspp),
        ("apc", {"width": WIDTH, "convs": True}, apc),
        ("dm", {"width": WIDTH}, dm),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_a_block_equals_the_code_it_is_known_by(
    name: str, options: dict[str, object], build: Callable[[nn.Module], Theirs]
) -> None:
    torch.manual_seed(0)
    block = randomised(blocks.create(name, C, **options)).double().eval()
    sides = (16, 24) if name == "isa" else SIDES  # theirs attends to its padding
    x = torch.randn(2, C, *sides, dtype=torch.float64)
    torch.testing.assert_close(block(x), build(block)(x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"width": 4}])
@pytest.mark.parametrize("name", ["psp", "aspp", "ocr", "apc"])
def test_one_image_is_enough_to_train_on(name: str, options: dict[str, int]) -> None:
    """PyTorch refuses a batch normalisation of one value per channel, and pooled maps have no more."""
    torch.manual_seed(0)
    block = blocks.create(name, 8, **options)
    block(torch.randn(1, 8, 5, 6)).sum().backward()
    for key, buffer in block.named_buffers():
        assert buffer.isfinite().all(), key


def test_a_lone_value_is_normalised_by_the_running_statistics_and_leaves_them() -> None:
    torch.manual_seed(0)
    norm = randomised(PooledNorm(6))
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    lone, two = torch.randn(1, 6, 1, 1), torch.randn(2, 6, 1, 1)
    torch.testing.assert_close(norm.train()(lone), norm.eval()(lone))
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())
    plain = nn.BatchNorm2d(6)
    plain.load_state_dict(state)
    torch.testing.assert_close(norm.train()(two), plain(two))


def test_far_attention_of_a_small_image_sees_only_itself() -> None:
    """One cell holds it all: padding has no part in either attention."""
    torch.manual_seed(0)
    block = randomised(blocks.create("isa", 4, width=3)).eval()
    x = torch.randn(1, 4, 5, 7)
    far = block.far
    torch.testing.assert_close(far(x), far.out(far.value(x)))
