"""Which public implementation each block is compared with, and how that gets the weights of ours.

Each was read: where ours means to compute the same, both must agree before either is timed. A note says
what was set or replaced so that the official code runs on a CPU and computes the same function. None of it is
meant to make that code slower. Layers of tokens get views of the map, not tokens in one piece, as ours are given
the map; what a layer adds to its input is added in all of them.
"""

from __future__ import annotations

from functools import partial

from packaging.version import Version
from torch import nn

from tests.bench.official import hamburgers, maps, tokens
from tests.bench.official.comparison import CORE, CORE_BFLOAT16, Comparison
from tests.bench.official.sources import Official, Package, Repository, Stubs

NORM_STUBS: Stubs = {
    "settings": {"BN_MOM": 3e-4, "STRIDE": 8, "EM_MOM": 0.9},
    "sync_bn.nn.modules": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
    "bn_lib.nn.modules": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
    "sync_batchnorm": {"SynchronizedBatchNorm2d": nn.BatchNorm2d},
}
TIMM_STUBS: Stubs = {
    "timm.data": {"IMAGENET_DEFAULT_MEAN": None, "IMAGENET_DEFAULT_STD": None},
    "timm.models.layers": {
        "DropPath": nn.Identity,
        "to_2tuple": lambda size: (size, size),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda model: model},
    "timm.models.vision_transformer": {"_cfg": dict},
}
PATTERNS_NOTE = "the input is 16 random patterns, mixed, under noise: clusters of noise alone are arbitrary, and rounding moves them"
NORM_NOTE = "synchronised batch normalisation, whose package needs CUDA, is torch's BatchNorm2d"
CUDA_NOTE = "`.cuda()` leaves tensors on the CPU"
BASES_NOTE = "both start from our bases, and draw none"
ONE_NOTE = "one value per channel, which its normalisation refuses in training, is normalised by the running statistics"
TOKENS_NOTE = "sees the map as tokens (B, N, C), without a copy"
FUSION_NOTE = "its modules, fused by the same 1x1 convolution and residual as ours"

HAMBURGER = Repository(
    "https://github.com/Gsunshine/Enjoy-Hamburger", "d9b51f6f197486df68c6e059e396520680157c08", "GPL-3.0"
)
BURGER = Official(HAMBURGER, "seg/HamNet/hamburger/burger.py", "seg/HamNet", NORM_STUBS)
HAM = Official(HAMBURGER, "seg/HamNet/hamburger/ham.py", "seg/HamNet", NORM_STUBS)

MMSEG = Package(("mmsegmentation",), "Apache-2.0")
MMCV = Package(("mmcv", "mmcv-lite"), "Apache-2.0")
TORCH = Package(("torch",), "BSD-3-Clause")
NON_LOCAL = Official(
    Repository(
        "https://github.com/AlexHex7/Non-local_pytorch",
        "ec15789af4533448169f3dc36abe542badd34221",
        "Apache-2.0",
    ),
    "lib/non_local_embedded_gaussian.py",
    "lib",
)


def mmseg_head(name: str) -> Official:
    return Official(MMSEG, f"mmseg/models/decode_heads/{name}_head.py")


def of_hamburgers() -> list[Comparison]:
    """Whole hamburgers, and their decompositions alone."""
    found = []
    for kind in ("NMF", "CD", "VQ"):
        name = f"ham-{kind.lower()}"
        notes = (NORM_NOTE, CUDA_NOTE, BASES_NOTE)
        found.append(
            Comparison(
                name, BURGER, partial(hamburgers.burger, kind, "V1"), notes, same=hamburgers.same_bases
            )
        )
        if kind == "NMF":
            v2 = f"{name}[version=v2]"
            found.append(
                Comparison(
                    v2, BURGER, partial(hamburgers.burger, kind, "V2"), notes, same=hamburgers.same_bases
                )
            )
        for dtype, limit in (("float32", CORE), ("bfloat16", CORE_BFLOAT16)):
            found.append(
                Comparison(
                    name,
                    HAM,
                    partial(hamburgers.core, kind),
                    (CUDA_NOTE, BASES_NOTE, PATTERNS_NOTE, *(("it runs in float32",) * (dtype != "float32"))),
                    part="core",
                    create=partial(hamburgers.make_core, kind),
                    same=hamburgers.same_bases,
                    dtype=dtype,
                    limit=limit,
                    patterns=16,
                    positive=kind == "NMF",
                )
            )
    return found


COMPARISONS: tuple[Comparison, ...] = (
    *of_hamburgers(),
    Comparison(
        "light-ham",
        mmseg_head("ham"),
        hamburgers.light_ham,
        (BASES_NOTE,),
        same=hamburgers.same_bases,
    ),
    Comparison(
        "self-attn", Official(MMSEG, "mmseg/models/utils/self_attention_block.py"), maps.self_attention
    ),
    Comparison("non-local", NON_LOCAL, maps.non_local),
    Comparison("non-local[sub_sample=True]", NON_LOCAL, maps.non_local),
    Comparison(
        "non-local[scale=True]",
        Official(MMCV, "mmcv/cnn/bricks/non_local.py"),
        maps.mmcv_non_local,
        ("its last convolution has no bias: ours is zero",),
    ),
    Comparison(
        "ccnet",
        Official(
            Repository(
                "https://github.com/speedinghzl/CCNet", "1fae6c67229c3863232494762b0afd9a8d7ff309", "MIT"
            ),
            "cc_attention/functions.py",
            "cc_attention",
        ),
        maps.ccnet,
        (CUDA_NOTE,),
    ),
    Comparison(
        "emanet",
        Official(
            Repository(
                "https://github.com/XiaLiPKU/EMANet", "f09ffac3a2294881b353b43300f1295065a398a8", "GPL-3.0"
            ),
            "network.py",
            stubs=NORM_STUBS,
        ),
        maps.emanet,
        (NORM_NOTE, "its training script moves the bases, ours does within the block"),
    ),
    Comparison(
        "a2",
        Official(
            Repository(
                "https://github.com/nguyenvo09/Double-Attention-Network",
                "c378693ff6c0407e9e460570b168c22e642b3f54",
                "none named",
            ),
            "double_attention_layer.py",
        ),
        maps.a2,
        ("there is no official code; the residual, which it lacks, is added",),
    ),
    Comparison(
        "danet",
        Official(
            Repository(
                "https://github.com/junfu1115/DANet", "b0a0fa008148f102321cdaa7ca38fb0ddd0239d1", "MIT"
            ),
            "encoding/nn/da_att.py",
            "encoding/nn",
        ),
        maps.danet,
        ("the sum of both modules; it holds the input twice, ours once",),
    ),
    Comparison("gcnet", Official(MMCV, "mmcv/cnn/bricks/context_block.py"), maps.gcnet),
    Comparison("dnl", mmseg_head("dnl"), maps.dnl),
    Comparison(
        "external",
        Official(
            Repository(
                "https://github.com/MenghaoGuo/EANet",
                "59c03cb0a286d3a29a797f8ea07fb89d7af56b60",
                "none named",
            ),
            "model_torch.py",
            stubs=NORM_STUBS,
        ),
        maps.external,
        (NORM_NOTE, "its two memories, which share one storage by mistake, are two"),
    ),
    Comparison(
        "efficient",
        Official(
            Repository(
                "https://github.com/cmsflash/efficient-attention",
                "46a5f9eaf09470affb0ab30932b7748cc3c871ef",
                "MIT",
            ),
            "efficient_attention.py",
        ),
        maps.efficient,
    ),
    Comparison(
        "sagan",
        Official(
            Repository(
                "https://github.com/ajbrock/BigGAN-PyTorch", "98459431a5d618d644d54cd1e9fceb1e5045648d", "MIT"
            ),
            "layers.py",
            stubs=NORM_STUBS,
        ),
        maps.sagan,
        ("without spectral normalisation, which is the network's here",),
    ),
    Comparison(
        "se",
        Official(MMSEG, "mmseg/models/utils/se_layer.py"),
        maps.se,
        ("with the paper's sigmoid, an option of it",),
    ),
    Comparison("psp", mmseg_head("psp"), maps.psp, (ONE_NOTE,)),
    Comparison("aspp", mmseg_head("aspp"), maps.aspp, (ONE_NOTE,)),
    Comparison("ann", mmseg_head("ann"), maps.ann),
    Comparison(
        "isa", mmseg_head("isa"), maps.isa, ("its head without the first convolution and the classifier",)
    ),
    Comparison(
        "ocr",
        mmseg_head("ocr"),
        maps.ocr,
        ("the regions come from the same classifier, a convolution, as in ours",),
    ),
    Comparison("apc[convs=True]", mmseg_head("apc"), maps.apc, (ONE_NOTE, FUSION_NOTE)),
    Comparison("dm", mmseg_head("dm"), maps.dm, (FUSION_NOTE,)),
    Comparison("mhsa", Official(TORCH, "torch/nn/modules/activation.py"), tokens.mhsa, (TOKENS_NOTE,)),
    Comparison(
        "linear-attn",
        Official(
            Repository(
                "https://github.com/idiap/fast-transformers",
                "2ad36b97e64cb93862937bd21fcc9568d989561f",
                "MIT",
            ),
            "fast_transformers/attention/linear_attention.py",
            bare=("fast_transformers.attention",),
            also=("fast_transformers.attention.attention_layer", "fast_transformers.masking"),
        ),
        tokens.linear_attention,
        (TOKENS_NOTE,),
    ),
    Comparison(
        "pooled-attn",
        Official(
            Repository(
                "https://github.com/whai362/PVT", "57e2dfaa5a46f9050d76f306a4fcd9a7c061f520", "Apache-2.0"
            ),
            "classification/pvt_v2.py",
            "classification",
            TIMM_STUBS,
        ),
        tokens.pooled_attention,
        (TOKENS_NOTE,),
    ),
    Comparison(
        "agent",
        Official(
            Repository(
                "https://github.com/LeapLabTHU/Agent-Attention",
                "207ce3eb357b22ef8a15f8fa21cd1f14697bbaba",
                "none named",
            ),
            "agent_transformer/models/agent_pvt.py",
            "agent_transformer/models",
            TIMM_STUBS,
        ),
        tokens.agent,
        (TOKENS_NOTE, "adds biases of position, zero here, which ours has not"),
    ),
    Comparison(
        "linformer",
        Official(
            Repository(
                "https://github.com/lucidrains/linformer", "970e1c3f12fbdc494f60a2bed5e807563850f585", "MIT"
            ),
            "linformer/linformer.py",
        ),
        tokens.linformer,
        (
            TOKENS_NOTE,
            "its learned projection is set to the means of segments, which ours takes without a product",
            "its queries, keys and values have no biases: ours are zero",
        ),
    ),
    Comparison(
        "nystrom",
        Official(
            Repository(
                "https://github.com/mlpen/Nystromformer",
                "56893131bf3fa99b5a2d3ab452a591dca722529a",
                "Apache-2.0",
            ),
            "code/attention_nystrom.py",
            "code",
        ),
        tokens.nystrom,
        (TOKENS_NOTE, "its attention between linear layers", "its exact start of the inverse, per matrix"),
    ),
    Comparison(
        "performer",
        Official(
            Repository(
                "https://github.com/lucidrains/performer-pytorch",
                "fc8b78441b1e27eb5d9b01fc738a8772cee07127",
                "MIT",
            ),
            "performer_pytorch/performer_pytorch.py",
            stubs={
                "local_attention": {"LocalAttention": None},
                "axial_positional_embedding": {"AxialPositionalEmbedding": None},
                "distutils.version": {"LooseVersion": Version},
            },
            bare=("performer_pytorch",),
        ),
        tokens.performer,
        (TOKENS_NOTE, "to compare results, nothing is added to the features: the two add 1e-4 and 1e-6"),
        same=tokens.no_floor,
    ),
    Comparison(
        "cosformer",
        Official(
            Repository(
                "https://github.com/OpenNLPLab/cosFormer",
                "8e12da111e2a683ea875711e0bf5810c6b4e8f9f",
                "Apache-2.0",
            ),
            "cosformer.py",
        ),
        tokens.cosformer,
        (
            "gets and gives a sequence (N, B, C): a view of the map on the way in, and of the sequence on the way out",
        ),
    ),
    Comparison(
        "fft[size={side}]",
        Official(
            Repository(
                "https://github.com/raoyongming/GFNet", "2de48b626ea805de82a7f389fed930af1ae0340d", "MIT"
            ),
            "gfnet.py",
            stubs={**TIMM_STUBS, "numpy.lib.arraypad": {"pad": None}},
        ),
        tokens.fft,
        (TOKENS_NOTE, "its filter, and the same projection behind it"),
    ),
    Comparison(
        "ssm",
        Official(
            Repository(
                "https://github.com/MzeroMiko/VMamba", "2ed52ead062a51a64521ed3871d52914bf532876", "MIT"
            ),
            "classification/models/vmamba.py",
            "classification/models",
            TIMM_STUBS,
        ),
        tokens.ssm,
        ("its scan in plain PyTorch, as without CUDA", "`torch.cuda.device` does nothing"),
        without={"train": "its scan takes minutes a backward without CUDA"},
    ),
)

UNCOMPARED = {
    "none": "it computes nothing",
}
"""Blocks without a comparison, and why."""
