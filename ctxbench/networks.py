"""What whole networks cost with a block in their slot, without data and without running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctxbench.cost import OperatorCount, PeakMemory
from ctxbench.errors import UsageError
from ctxbench.record import GIGA
from ctxbench.reports import published
from ctxbench.segmentation import SegmentationCell
from ctxbench.tables import MISSING, Column, Table, number

MILLION, GIB = 1e6, 2**30
SLOT = "decode_head.context"
PARTS = {
    "backbone": "backbone",
    "decode_head.squeeze": "squeeze",
    SLOT: "block",
    "decode_head.align": "align",
    "decode_head.fuse": "fuse",
    "decode_head.conv_seg": "classifier",
    "auxiliary_head": "auxiliary",
}
# Operators that a tracing counter (torchprofile) gives one multiplication per output element.
ELEMENTWISE = {
    "mul",
    "mul_",
    "mean",
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "native_layer_norm",
    "native_group_norm",
}
PUBLISHED_CLASSES = 150  # the published rows are of ADE20K
BILINEAR = 4  # multiplications per element of a bilinear resize, by the same counter


class TracedCount(OperatorCount):
    """Beside our own count the one behind the published numbers of VAN networks.

    It adds the element-wise products, the normalisations and the resizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elementwise = self.convolutions = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.macs
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        name = operator.overloadpacket.__name__
        output = result[0] if isinstance(result, tuple) else result
        if name in ELEMENTWISE:
            self.elementwise += output.numel()
        elif name == "upsample_bilinear2d":
            self.elementwise += BILINEAR * output.numel()
        elif name == "convolution":
            self.convolutions += self.macs - before
        return result


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one network.

    Attributes:
        title: the network's name in papers; `model`, `block`: here.
        own: whether the block is the network's own; classes: of the classifier.
        size: (height, width) of the input of one image.
        params, block_params: of all in inference and training, and of the block.
        parts: MACs of each part in inference.
        macs: of all parts.
        macs_traced: with element-wise products, normalisations and resizes, and with what the block spares.
        macs_convolutions: of convolutions alone.
        batch, crop: of training.
        memory_train_bytes: predicted peak of a forward and backward, with parameters, gradients and
            the input; the optimiser's states come on top.
    """

    model: str
    title: str
    block: str
    own: bool
    classes: int
    size: tuple[int, int]
    params: int
    block_params: int
    parts: dict[str, int]
    macs: int
    macs_traced: int
    macs_convolutions: int
    batch: int
    crop: tuple[int, int]
    memory_train_bytes: int

    @property
    def printed(self) -> dict[str, str]:
        """The published parameters and MACs of this network with its own block, as printed."""
        rows = published.load("paper") if self.own and self.classes == PUBLISHED_CLASSES else []
        return {row["metric"]: row["value"] for row in rows if row["method"] == self.title and row["value"]}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"published": self.printed}


@torch.no_grad()
def infer(network: nn.Module, size: tuple[int, int]) -> tuple[TracedCount, dict[str, int]]:
    """The counts of one image, and the MACs of each part."""
    counter = TracedCount()
    parts: dict[str, int] = {}
    with counted_parts(network, counter, parts), counter:
        x = torch.empty(1, 3, *size, device="meta")
        network.encode_decode(x, [{"img_shape": size}])  # type: ignore[operator]
    return counter, parts


@contextmanager
def counted_parts(network: nn.Module, counter: OperatorCount, parts: dict[str, int]) -> Iterator[None]:
    """Puts into `parts` what the counter counts while each part runs."""
    handles = []
    for path, name in PARTS.items():
        module = part_of(network, path)
        if module is None:
            continue

        def begin(module: nn.Module, args: Any, name: str = name) -> None:
            parts[name] = parts.get(name, 0) - counter.macs

        def end(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            parts[name] += counter.macs

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_of(network: nn.Module, path: str) -> nn.Module | None:
    found: Any = network
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def training_peak(network: nn.Module, batch: int, crop: tuple[int, int]) -> int:
    """Peak bytes of a forward and backward with cross-entropy at full size, all heads included."""
    network.train()
    memory = PeakMemory()
    memory.track([*network.parameters(), *network.buffers()])
    with memory:
        x = torch.empty(batch, 3, *crop, device="meta")
        labels = torch.zeros(batch, *crop, dtype=torch.long, device="meta")
        maps = network.extract_feat(x)  # type: ignore[operator]
        heads = [network.decode_head, *([network.auxiliary_head] if network.with_auxiliary_head else [])]
        losses: list[Tensor] = [
            F.cross_entropy(F.interpolate(head(maps), size=crop, mode="bilinear"), labels)  # type: ignore[operator]
            for head in heads
        ]
        del maps
        sum(losses).backward()  # type: ignore[union-attr]
    network.zero_grad()
    return memory.peak


def tables(costs: list[NetworkCost]) -> list[Table[NetworkCost]]:
    return [table(costs), parts_table(costs)]


def table(costs: list[NetworkCost]) -> Table[NetworkCost]:
    """The networks with the block's share and, where there are any, the published numbers."""
    columns = [
        Column[NetworkCost]("model", lambda it: it.model, numeric=False),
        Column[NetworkCost]("block", lambda it: it.block, numeric=False),
        Column[NetworkCost]("input", lambda it: "x".join(map(str, it.size)), numeric=False),
        Column[NetworkCost]("params (10^6)", lambda it: f"{it.params / MILLION:.2f}"),
        Column[NetworkCost]("of block", lambda it: share(it.block_params, it.params)),
        Column[NetworkCost]("MACs (G)", lambda it: number(it.macs / GIGA)),
        Column[NetworkCost]("of block", lambda it: share(it.parts.get("block", 0), it.macs)),
        Column[NetworkCost]("MACs, traced (G)", lambda it: f"{it.macs_traced / GIGA:.2f}"),
    ]
    if any(it.printed for it in costs):
        columns += [
            Column("printed params", lambda it: it.printed.get("params", MISSING)),
            Column("printed MACs", lambda it: it.printed.get("macs", MISSING)),
            Column("verdict", verdict, numeric=False),
        ]
    columns.append(Column("training (GiB)", training))
    notes = [
        "Nothing was run. MACs: convolutions and matrix products of one image. Traced: with element-wise "
        "products, normalisations and resizes, and with the products that a block spares against its published "
        "code, as the counter behind the published numbers of VAN networks.",
        "Training: predicted peak of a forward and backward of a batch of crops, without the optimiser's states.",
    ]
    notes += [note for it in costs if (note := explanation(it))]
    return Table("Whole networks", columns, costs, notes)


def parts_table(costs: list[NetworkCost]) -> Table[NetworkCost]:
    """The MACs of each part."""
    columns = [
        Column[NetworkCost]("model", lambda it: it.model, numeric=False),
        Column[NetworkCost]("block", lambda it: it.block, numeric=False),
    ]
    for name in PARTS.values():
        if any(name in it.parts for it in costs):
            columns.append(
                Column(f"{name} (G)", lambda it, name=name: number(part(it, name)))  # type: ignore[misc]
            )
    return Table("MACs of the parts", columns, costs)


def part(cost: NetworkCost, name: str) -> float | None:
    return cost.parts[name] / GIGA if name in cost.parts else None


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%"


def training(cost: NetworkCost) -> str:
    crop = "x".join(map(str, cost.crop))
    return f"{cost.memory_train_bytes / GIB:.2f} ({cost.batch} of {crop})"


def agrees(printed: str, value: float) -> bool:
    """Whether the value has the printed digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def verdict(cost: NetworkCost) -> str:
    """Whether parameters and traced MACs have the printed digits."""
    found = {"params": cost.params / MILLION, "macs": cost.macs_traced / GIGA}
    both = {name: agrees(text, found[name]) for name, text in cost.printed.items() if name in found}
    if not both:
        return MISSING
    differing = [name.replace("macs", "MACs") for name, same in both.items() if not same]
    return f"{' and '.join(differing)} differ, see note" if differing else "agrees"


def explanation(cost: NetworkCost) -> str:
    """What the printed MACs of a dilated ResNet seem to have been counted by."""
    printed = cost.printed.get("macs")
    if printed is None or agrees(printed, cost.macs_traced / GIGA) or "ResNet" not in cost.title:
        return ""
    alone = cost.macs_convolutions / GIGA
    return (
        f"{cost.model}: {printed} G are printed; the convolutions alone are {alone:.1f} G "
        f"({100 * (alone / float(printed) - 1):+.1f}%). A counter that hooks modules, as mmsegmentation's, sees "
        "them and not the products of the factorisation."
    )


def estimate(cells: list[SegmentationCell]) -> list[NetworkCost]:
    """What each cell's network costs; the same network once.

    Raises:
        UsageError: for a block that does not fit into the slot, or that counts wrongly.
    """
    return [cost_of(cell) for cell in {(it.model, it.block, it.options): it for it in cells}.values()]


def cost_of(cell: SegmentationCell) -> NetworkCost:
    from tasks.segmentation.models import MODELS
    from tasks.segmentation.training import build

    model, stage = MODELS[cell.model], cell.stages[-1]
    try:
        network = build(cell.job(0)).eval().to("meta")
    except ValueError as error:
        raise UsageError(f"{cell.label} in {cell.model}: {error}") from None
    size = stage.crop if cell.model == "localnet" else model.size
    block: Any = part_of(network, SLOT)
    sizes: list[tuple[int, int]] = []
    block.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[2:])))
    counter, parts = infer(network, size)
    check_counts(cell.label, block, sizes[0], parts["block"])
    return NetworkCost(
        model=cell.model,
        title=model.title,
        block=cell.label,
        own=cell.block == model.block and cell.given == model.options,
        classes=stage.classes,
        size=size,
        params=count(network),
        block_params=count(block),
        parts=parts,
        macs=counter.macs,
        macs_traced=counter.macs + counter.elementwise + block.spared_macs(*sizes[0]),
        macs_convolutions=counter.convolutions,
        batch=cell.batch,
        crop=stage.crop,
        memory_train_bytes=training_peak(network, cell.batch, stage.crop),
    )


def check_counts(label: str, block: Any, size: tuple[int, int], macs: int) -> None:
    """A block's own formulas must give what is counted.

    Raises:
        UsageError: with both numbers.
    """
    require_equal(label, "param_count", block.param_count(), count(block))
    require_equal(label, "macs", block.macs(*size), macs)


def require_equal(label: str, name: str, said: int, found: int) -> None:
    if said != found:
        raise UsageError(f"{label}: {name}() gives {said}, but there are {found}")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
