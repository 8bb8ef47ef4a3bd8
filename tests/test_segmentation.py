"""Networks with a block in their slot: their parts, their training, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blocks
from blocks import registry
from ctxbench import data as datasets
from ctxbench import networks, taskcell, taskgrid, training
from ctxbench.errors import UsageError
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from tasks import legend
from tasks.generation.recipes import RECIPES as GENERATED
from tasks.segmentation import checkpoints, heads, parts
from tasks.segmentation import training as engine
from tasks.segmentation.data import ADE20K, CITYSCAPES, CLASSES, CONTEXT, DATASETS, VOC
from tasks.segmentation.models import MODELS
from tasks.segmentation.recipes import DEMO, RECIPES
from tests.factories import KilledError, killed_at, torchrun

pytestmark = pytest.mark.filterwarnings("ignore")
PRINTED = [name for name in MODELS if name.startswith(("light-ham", "hamnet-van"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return legend.generate(tmp_path_factory.mktemp("legend"), legend.Recipe("14", train=16, val=4))


def job(data: Path, block: str = "a2", **fields: Any) -> engine.Job:
    return engine.Job(
        **(
            {
                "recipe": DEMO,
                "model": "localnet",
                "block": block,
                "options": {},
                "data_root": data,
                "iterations": 4,
            }
            | fields
        )
    )


def cost_of(task: str, model: str, block: str | None = None) -> networks.NetworkCost:
    grid = taskgrid.make_grid(task, "mmseg" if task != "voc" else None, block, models=model)
    (cost,) = networks.estimate(grid.cells())
    return cost


# The slot


@pytest.mark.parametrize("name", blocks.names())
def test_any_block_fits_into_the_slot(name: str) -> None:
    head = heads.ContextHead(name, in_channels=16, channels=32, num_classes=3, norm_cfg={"type": "BN"})
    assert head([torch.randn(2, 16, 6, 5)]).shape == (2, 3, 6, 5)


def test_the_head_of_hamnet_plus_sees_its_input_again() -> None:
    options = {"in_channels": 8, "channels": 16, "num_classes": 3, "norm_cfg": {"type": "BN"}}
    without, with_input = (heads.ContextHead("none", concat_input=it, **options) for it in (False, True))
    spare = sum(each.numel() for each in with_input.parameters()) - sum(
        each.numel() for each in without.parameters()
    )
    assert spare == 3 * 3 * (8 + 16) * 16 + 2 * 16
    assert with_input([torch.randn(1, 8, 4, 4)]).shape == (1, 3, 4, 4)


def test_the_light_head_joins_three_stages_at_the_first_ones_size() -> None:
    head = heads.LightContextHead([8, 16, 24], block="light-ham", channels=32, num_classes=5)
    maps = [torch.randn(1, width, side, side) for width, side in ((4, 32), (8, 16), (16, 8), (24, 4))]
    assert head(maps).shape == (1, 5, 16, 16)


def test_a_users_own_config_can_name_the_head() -> None:
    config = {
        "type": "ContextHead",
        "block": "ccnet",
        "in_channels": 8,
        "channels": 8,
        "num_classes": 2,
        "norm_cfg": {"type": "BN"},
    }
    assert isinstance(heads.MODELS.build(config).context, blocks.info("ccnet").cls)


# Whole networks


@pytest.mark.parametrize("model", PRINTED)
def test_parameters_and_macs_have_the_printed_digits(model: str) -> None:
    cost = cost_of("ade20k", model)
    assert set(cost.printed) >= {"params", "macs"}
    assert networks.verdict(cost) == "agrees"


@pytest.mark.parametrize(
    ("model", "params", "macs"), [("hamnet-r101", "57", 918), ("hamnet-plus-r101", "69", 1111)]
)
def test_the_printed_macs_of_dilated_resnets_are_those_of_their_convolutions(
    model: str, params: str, macs: int
) -> None:
    cost = cost_of("ade20k", model)
    assert networks.agrees(params, cost.params / 1e6)
    assert cost.macs_convolutions / 1e9 == pytest.approx(macs, rel=0.002)
    assert "the convolutions alone are" in networks.explanation(cost)


def test_the_parts_make_up_the_whole_and_the_block_has_its_closed_form() -> None:
    cost = cost_of("ade20k", "light-ham-van-tiny")
    assert sum(cost.parts.values()) == cost.macs
    assert cost.parts["block"] == blocks.create("light-ham", 480).eval().macs(64, 64)


@pytest.mark.parametrize("model", MODELS)
def test_every_network_can_be_built_with_and_without_a_block(model: str) -> None:
    found = {cost_of("ade20k", model, block).params for block in ("none", "a2")}
    assert len(found) == 2


def test_more_to_remember_is_predicted_to_take_more_memory() -> None:
    one, two = (
        networks.training_peak(engine.build(job(Path())).to("meta"), batch, (64, 64)) for batch in (1, 2)
    )
    assert one < two < 2.2 * one


# Training


def test_equal_seeds_start_alike_outside_the_block(data: Path) -> None:
    first, second = (engine.starting_weights(job(data, block)) for block in ("none", "a2"))
    shared = [name for name in first if not engine.within_block(name)]
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert any(engine.within_block(name) for name in second)
    other = engine.starting_weights(job(data, "none", seed=1))
    assert any(not torch.equal(first[name], other[name]) for name in shared)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> engine.Trained:
    return engine.train(long_job(data), tmp_path_factory.mktemp("straight"))


def long_job(data: Path) -> engine.Job:
    return job(data, "ham-nmf", options={"rank": 4}, iterations=8)


def assert_equal(found: engine.Trained, expected: engine.Trained) -> None:
    weights = found.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.network.state_dict().items())
    assert found.result.curve == expected.result.curve
    assert found.result.iou == expected.result.iou


@pytest.mark.parametrize("iteration", [2, 4, 5, 8])
def test_a_training_that_is_killed_and_resumed_ends_bit_for_bit_as_a_straight_one(
    data: Path, tmp_path: Path, straight: engine.Trained, iteration: int
) -> None:
    """It goes on from the checkpoint before; that of iteration 4 is written when it has been scored."""
    with pytest.raises(KilledError):
        engine.train(long_job(data), tmp_path, killed_at(f"iteration {iteration}"))
    resumed = engine.train(long_job(data), tmp_path)
    assert [point["iteration"] for point in resumed.result.curve if "miou" in point] == [4, 8]
    assert_equal(resumed, straight)


def test_a_training_that_is_killed_when_it_has_ended_is_only_scored(
    data: Path, tmp_path: Path, straight: engine.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        engine.train(long_job(data), tmp_path, killed_at("scoring"))
    monkeypatch.setattr("mmengine.runner.Runner.train", lambda runner: pytest.fail("trained again"))
    scored = engine.train(long_job(data), tmp_path)
    assert_equal(scored, straight)
    assert scored.result.cpu_seconds > 0


def test_blocks_of_a_seed_see_the_same_images_in_the_same_order(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a block draws random numbers."""
    from mmseg.models.data_preprocessor import SegDataPreProcessor

    seen: list[torch.Tensor] = []
    original = SegDataPreProcessor.forward

    def watched(self: Any, batch: Any, training: bool = False) -> Any:
        if training:
            seen.append(torch.stack([image.float() for image in batch["inputs"]]))
        return original(self, batch, training)

    monkeypatch.setattr(SegDataPreProcessor, "forward", watched)
    for block in ("none", "ham-nmf"):
        engine.train(job(data, block), tmp_path / block)
    assert len(seen) == 8
    assert all(torch.equal(first, second) for first, second in zip(seen[:4], seen[4:], strict=True))


def test_inverting_the_cue_moves_a_disc_only_where_a_block_brings_it(data: Path) -> None:
    """The diagnostic's locality, with a network: none of the logits of a disc without context."""

    def moved(block: str) -> float:
        network = engine.build(job(data, block)).eval()
        found = 0.0
        for seed in range(4):
            scenes = [legend.draw(np.random.default_rng(seed), "1.6", white) for white in (False, True)]
            x = torch.stack(
                [torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 64 for image, _ in scenes]
            )
            with torch.no_grad():
                logits = network.encode_decode(x, [{"img_shape": (128, 128)}] * 2)  # type: ignore[operator]
            discs = torch.from_numpy(np.isin(scenes[0][1], legend.CONTEXT))
            found = max(found, float((logits[0] - logits[1])[:, discs].abs().max()))
        return found

    assert moved("none") == 0.0
    assert moved("ham-nmf") > 0
    assert moved("self-attn") > 0


def test_a_class_that_never_occurs_does_not_count() -> None:
    assert engine.mean_of([None, 0.5]) == 0.5
    assert engine.mean_of([None, None]) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle"])
def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    data: Path, tmp_path: Path, straight: engine.Trained, damage: str
) -> None:
    """A process may be killed while it writes one, or what it says is the last."""
    with pytest.raises(KilledError):
        engine.train(long_job(data), tmp_path, killed_at("iteration 6"))
    latest = tmp_path / "iter_5.pth"
    assert engine.last_checkpoint(tmp_path) == latest
    content = {"empty": b"", "cut": latest.read_bytes()[:-500], "pickle": pickle.dumps(print)}
    latest.write_bytes(content[damage])
    (tmp_path / "last_checkpoint").write_bytes(b"")
    assert engine.last_checkpoint(tmp_path) == tmp_path / "iter_4.pth"
    assert_equal(engine.train(long_job(data), tmp_path), straight)


def test_checkpoints_hold_tensors_and_plain_values_alone(data: Path, tmp_path: Path) -> None:
    engine.train(job(data), tmp_path)
    path = max(tmp_path.glob("iter_*.pth"))
    assert set(torch.load(path, weights_only=True)) >= {"state_dict", "optimizer", "random", "curve"}


def test_a_training_leaves_no_open_log_to_the_next(data: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        engine.train(job(data, iterations=1), tmp_path / name)
        logging.shutdown()  # as whoever configures logging does


def test_mixed_precision_trains_on_a_cpu(data: Path, tmp_path: Path) -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        curve = engine.train(job(data, dtype=dtype), tmp_path / dtype).result.curve
        losses[dtype] = [point["loss"] for point in curve if "loss" in point]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_a_loss_that_is_not_finite_is_told(data: Path, tmp_path: Path) -> None:
    recipe = replace(DEMO, optimizer={"type": "SGD", "lr": 1e30})
    with pytest.raises(FloatingPointError, match="the loss is"):
        engine.train(job(data, recipe=recipe), tmp_path)


def test_scores_are_those_of_the_confusion_of_all_pixels(data: Path, tmp_path: Path) -> None:
    trained = engine.train(job(data), tmp_path)
    truth, predicted = (
        np.concatenate([each[index].ravel() for each in trained.samples(4)]) for index in (1, 2)
    )
    assert trained.result.pixel_accuracy == pytest.approx(float((truth == predicted).mean()))
    for number, (name, value) in enumerate(trained.result.iou.items()):
        union = ((truth == number) | (predicted == number)).sum()
        assert name == legend.CLASSES[number]
        assert value == pytest.approx(((truth == number) & (predicted == number)).sum() / union, abs=1e-5)
    context = [trained.result.iou[legend.CLASSES[number]] for number in legend.CONTEXT]
    assert trained.result.context_iou == pytest.approx(np.mean(context))


@pytest.mark.parametrize("scoring", ["ms-flip-logits", "ms-flip-softmax"])
def test_scores_of_several_scales_are_those_of_each_put_together(data: Path, scoring: str) -> None:
    network = engine.build(job(data, scoring=scoring)).eval()
    plain = engine.build(job(data)).eval()
    plain.load_state_dict(network.state_dict())
    x, metas = torch.randn(1, 3, 64, 48), [{"img_shape": (64, 48), "ori_shape": (64, 48)}]
    with torch.no_grad():
        expected = torch.zeros(1, len(legend.CLASSES), 64, 48)
        for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
            for flip in (lambda y: y, lambda y: y.flip(3)):
                scaled = torch.nn.functional.interpolate(x, scale_factor=scale, mode="bilinear")
                logits = flip(plain.inference(flip(scaled), metas))
                logits = torch.nn.functional.interpolate(logits, (64, 48), mode="bilinear")
                expected += logits.softmax(1) if scoring.endswith("softmax") else logits
        assert torch.allclose(network.inference(x, metas), expected, atol=1e-5)


PROCESS = """
import sys
from pathlib import Path
import torch
from tasks import launch
from tasks.segmentation import training
from tasks.segmentation.recipes import DEMO

torch.set_num_threads(1)
rank = launch.join_processes("cpu")
job = training.Job(DEMO, "localnet", "ham-nmf", {"rank": 4}, Path(sys.argv[1]), iterations=3)
trained = training.train(job, Path("work"))
torch.save(trained.network.state_dict(), f"{rank}.pt")
Path(f"{rank}.txt").write_text(f"{launch.processes()} {trained.result.miou} {torch.rand(()).item()}")
"""


def test_two_processes_train_one_network(data: Path, tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    torchrun(tmp_path, "process.py", str(data))
    (count, score, drawn), (_, same, other) = (
        (tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1)
    )
    assert count == "2"
    assert score == same, "both know the score"
    assert drawn != other, "each draws random numbers of its own"
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_under_torchrun_the_command_trains_together_and_records_once(tmp_path: Path) -> None:
    arguments = [
        "-m",
        "ctxbench",
        "task",
        "voc",
        "--preset",
        "demo",
        "--blocks",
        "none,a2",
        "--iterations",
        "2",
    ]
    out = torchrun(tmp_path, *arguments, "--out", "run", "--json")
    assert [record["status"] for record in json.loads(out)] == ["ok", "ok"]
    assert len(list((tmp_path / "run" / "records").iterdir())) == 2
    assert len(list((tmp_path / "run" / "commands").iterdir())) == 1
    assert [json.loads(record["protocol_json"])["processes"] for record in json.loads(out)] == [2, 2]


# Bad data


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    return legend.generate(tmp_path / "own", legend.Recipe("14", train=4, val=2))


def spoil(path: Path, how: str) -> None:
    labels = np.array(Image.open(path)) if how != "truncated" else None
    if labels is None:
        path.write_bytes(path.read_bytes()[:-200])
        return
    if how == "class":
        labels[0, 0] = 77
    else:
        labels = labels[:-3]
    Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ("how", "folder", "words"),
    [
        ("class", "SegmentationClass", "no class 77; there are 0 to 5, and 255"),
        ("size", "SegmentationClass", "labels of 125x128 instead of 128x128"),
        ("truncated", "JPEGImages", "truncated"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    own_data: Path, tmp_path: Path, how: str, folder: str, words: str
) -> None:
    for path in (own_data / folder).glob("train*.png"):
        spoil(path, how)
    with pytest.raises(parts.BadDataError, match=words) as found:
        engine.train(job(own_data), tmp_path / "work")
    assert "train_000" in str(found.value)


def test_a_list_without_images_is_told(own_data: Path, tmp_path: Path) -> None:
    (own_data / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(parts.BadDataError, match=r"val\.txt lists no images"):
        engine.train(job(own_data), tmp_path / "work")


def test_labels_that_are_all_ignored_give_no_score(own_data: Path, tmp_path: Path) -> None:
    for path in (own_data / "SegmentationClass").glob("val*.png"):
        Image.fromarray(np.full((128, 128), 255, np.uint8)).save(path)
    with pytest.raises(parts.BadDataError, match="no pixel of the val images has a label"):
        engine.train(job(own_data), tmp_path / "work")


def test_what_went_wrong_in_a_process_that_loads_data_is_told() -> None:
    text = "Caught BadDataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\ntasks.segmentation.parts.BadDataError: a.png: no class 77"
    assert str(training.original(RuntimeError(text))) == "a.png: no class 77"
    error = ValueError("another")
    assert training.original(error) is error


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    ours = wanted()
    ours["decode_head.conv_seg.bias"][0] = float("nan")
    with pytest.raises(checkpoints.CheckpointError, match=r"decode_head\.conv_seg\.bias is not finite"):
        checkpoints.load(saved(tmp_path / "nan.pth", ours), wanted())


def test_what_is_missing_of_a_data_set_is_listed_with_the_way_to_get_it(tmp_path: Path) -> None:
    (cell,) = taskgrid.make_grid("voc", "paper", "none").cells()
    text = cell.missing(tmp_path)
    assert text is not None
    assert "VOCdevkit/VOC2012/JPEGImages" in text
    assert "--preset demo" in text
    for split in VOC.splits.values():
        for part in (split.images, split.labels):
            (tmp_path / VOC.folder / part).mkdir(parents=True, exist_ok=True)
        assert split.names is not None
        (tmp_path / VOC.folder / split.names).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / VOC.folder / split.names).touch()
    assert cell.missing(tmp_path) is None


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "legend"])
def test_a_data_set_has_the_classes_that_mmsegmentation_knows(name: str) -> None:
    from mmseg.registry import DATASETS as REGISTRY

    assert len(REGISTRY.get(DATASETS[name].kind).METAINFO["classes"]) == CLASSES[name]


def voc_layout(root: Path, data: Any, names: dict[str, int], classes: int) -> None:
    """A few generated images in a data set's own layout."""
    rng = np.random.default_rng(0)
    for split, part in data.splits.items():
        city = "aachen/" if data is CITYSCAPES else ""
        stems = [f"{city}{split}_{number}" for number in range(names.get(split, 2))]
        for stem in stems:
            image, labels = legend.draw(rng, "14")
            for folder, suffix, picture in (
                (part.images, data.image_suffix, image),
                (part.labels, data.label_suffix, labels.clip(0, classes - 1)),
            ):
                path = root / data.folder / folder / f"{stem}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
        if part.names:
            path = root / data.folder / part.names
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(stems) + "\n")


@pytest.mark.parametrize(
    ("task", "preset", "data_set"),
    [
        ("voc", "paper", VOC),
        ("voc", "mmseg", VOC),
        ("pascal-context", "mmseg", CONTEXT),
        ("ade20k", "paper", ADE20K),
        ("cityscapes", "mmseg", CITYSCAPES),
    ],
)
def test_real_layouts_are_trained_on(tmp_path: Path, task: str, preset: str, data_set: Any) -> None:
    voc_layout(tmp_path, data_set, {}, CLASSES[data_set.name])
    recipe = replace(RECIPES[task][preset][-1], crop=(64, 64), batch=2, workers=0)
    recipe = replace(
        recipe,
        augmentation=tuple(
            it | {"crop_size": (64, 64)} if it["type"] == "RandomCrop" else it for it in recipe.augmentation
        ),
    )
    trained = engine.train(job(tmp_path, "none", recipe=recipe, iterations=1), tmp_path / "work")
    assert len(trained.result.iou) == CLASSES[data_set.name]
    assert 0 <= trained.result.miou <= 1


# Weights from files


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def wanted(model: str = "light-ham-van-tiny", task: str = "ade20k") -> dict[str, torch.Tensor]:
    grid = taskgrid.make_grid(task, None, None, models=model)
    (cell,) = grid.cells()
    assert isinstance(cell, taskcell.TaskCell)
    return engine.build(cell.job(0)).state_dict()


# Keys of the official files, read off their code, and ours.
LIGHT_HAM = (
    ("decode_head.context.lower_bread.", "decode_head.hamburger.ham_in.conv."),
    ("decode_head.context.upper_bread.0.", "decode_head.hamburger.ham_out.conv."),
    ("decode_head.context.upper_bread.1.", "decode_head.hamburger.ham_out.gn."),
)
HAM_HEAD = (
    ("decode_head.context.lower_bread.", "decode_head.ham_in.conv."),
    ("decode_head.context.upper_bread.0.", "decode_head.ham_out.conv."),
    ("decode_head.context.upper_bread.1.", "decode_head.ham_out.gn."),
    ("decode_head.fuse.", "decode_head.conv_cat."),
)
HAMNET = (
    ("backbone.stem.7.", "module.backbone.1."),
    ("backbone.stem.", "module.backbone.0."),
    *((f"backbone.layer{number}.", f"module.backbone.{number + 3}.") for number in (1, 2, 3, 4)),
    ("decode_head.squeeze.", "module.squeeze."),
    ("decode_head.align.", "module.align."),
    ("decode_head.context.lower_bread.", "module.hamburger.lower_bread.0."),
    ("decode_head.context.cheese.0.", "module.hamburger.cheese.conv."),
    ("decode_head.context.cheese.1.", "module.hamburger.cheese.bn."),
    ("decode_head.context.upper_bread.", "module.hamburger.upper_bread."),
    ("decode_head.conv_seg.", "module.fc.1."),
)


def theirs_of(name: str, keys: tuple[tuple[str, str], ...]) -> str:
    ours, theirs = next(((ours, theirs) for ours, theirs in keys if name.startswith(ours)), ("", ""))
    return theirs + name.removeprefix(ours)


@pytest.mark.parametrize(
    ("model", "task", "keys"),
    [
        ("light-ham-van-tiny", "ade20k", LIGHT_HAM),
        ("hamnet-van-tiny-os8", "ade20k", HAM_HEAD),
        ("hamnet-voc-r50", "voc", HAMNET),
    ],
)
def test_official_names_are_understood_and_every_tensor_arrives(
    tmp_path: Path, model: str, task: str, keys: tuple[tuple[str, str], ...]
) -> None:
    ours = wanted(model, task)
    known = [name for name in ours if not name.endswith((".bases", "num_batches_tracked"))]
    theirs = {theirs_of(name, keys): torch.randn_like(ours[name]) for name in known}
    found = checkpoints.load(saved(tmp_path / "file.pth", {"state_dict": theirs, "meta": {"epoch": 1}}), ours)
    assert set(found) == set(ours)
    assert all(torch.equal(found[name], theirs[theirs_of(name, keys)]) for name in known)


def test_the_weights_of_mmsegmentations_own_network_arrive(tmp_path: Path) -> None:
    """SegNeXt as mmsegmentation builds it, with its own head."""
    from mmengine.config import ConfigDict

    config = MODELS["segnext-t"].config("light-ham", {}, 150)
    own = {
        name: config["decode_head"][name]
        for name in ("in_channels", "channels", "dropout_ratio", "num_classes")
    }
    ham = {"MD_S": 1, "MD_R": 16, "train_steps": 6, "eval_steps": 7, "inv_t": 1, "rand_init": True}
    config["decode_head"] = own | {
        "type": "LightHamHead",
        "in_index": [1, 2, 3],
        "ham_channels": 256,
        "norm_cfg": {"type": "GN", "num_groups": 32},
        "ham_kwargs": ham,
    }
    network = heads.build(ConfigDict(config))
    file = saved(tmp_path / "segnext.pth", {"state_dict": network.state_dict()})
    found = checkpoints.load(file, wanted("segnext-t"))
    assert torch.equal(found["decode_head.align.conv.weight"], network.decode_head.align.conv.weight)
    assert torch.equal(
        found["decode_head.context.lower_bread.weight"], network.decode_head.hamburger.ham_in.conv.weight
    )


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_a_backbone_comes_from_a_classifier_or_a_network(tmp_path: Path, prefix: str) -> None:
    ours = wanted()
    own = {
        name: torch.randn_like(value)
        for name, value in ours.items()
        if name.startswith("backbone.") and value.is_floating_point()
    }
    theirs = {prefix + name.removeprefix("backbone."): value for name, value in own.items()}
    spare = {"decode_head.weight" if prefix == "backbone." else f"{prefix}head.weight": torch.ones(3)}
    found = checkpoints.load_backbone(saved(tmp_path / "file.pth", {"state_dict": theirs | spare}), ours)
    assert all(torch.equal(found[name], value) for name, value in own.items())
    theirs.popitem()
    with pytest.raises(checkpoints.CheckpointError, match="missing backbone"):
        checkpoints.load_backbone(saved(tmp_path / "less.pth", theirs), ours)


def test_a_recipes_momentum_is_that_of_every_normalisation() -> None:
    network = engine.build(job(Path(), "ham-nmf", recipe=replace(DEMO, norm_momentum=3e-4)))
    momenta = {module.momentum for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert momenta == {3e-4}


def test_misfits_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    ours = wanted()
    narrow = {name: value[..., :1] if value.dim() > 1 else value for name, value in ours.items()}
    with pytest.raises(checkpoints.CheckpointError, match=r"is .*, not .* and [0-9]+ more"):
        checkpoints.load(saved(tmp_path / "narrow.pth", narrow), ours)
    lacking = {name: value for name, value in ours.items() if name != "decode_head.conv_seg.weight"} | {
        "extra": torch.ones(1)
    }
    with pytest.raises(
        checkpoints.CheckpointError, match=r"missing decode_head\.conv_seg\.weight; unknown extra"
    ):
        checkpoints.load(saved(tmp_path / "lacking.pth", lacking), ours)


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("struck"),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(150, dtype=torch.bool), "of torch.bool, not torch.float32"),
        (torch.zeros(150, dtype=torch.complex64), "of torch.complex64"),
        (torch.full((150,), 1e300, dtype=torch.float64), "not finite"),
        (torch.zeros(150).to_sparse(), "no plain tensor"),
        (torch.zeros(1).expand(10**6, 10**5), "is 1000000x100000, not 150"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(tmp_path: Path, value: torch.Tensor, words: str) -> None:
    ours = wanted() | {"decode_head.conv_seg.bias": value}
    with pytest.raises(checkpoints.CheckpointError, match=words):
        checkpoints.load(saved(tmp_path / "odd.pth", ours), wanted())


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    ours = wanted()
    ours["module.decode_head.conv_seg.bias"] = ours["decode_head.conv_seg.bias"] + 1
    with pytest.raises(checkpoints.CheckpointError, match=r"holds decode_head\.conv_seg\.bias twice"):
        checkpoints.load(saved(tmp_path / "twice.pth", ours), wanted())


def test_the_classifier_that_the_official_hamnet_starts_from_fits(tmp_path: Path) -> None:
    """Its stem of three convolutions is called conv1, the last one's normalisation bn1."""
    ours = wanted("hamnet-voc-r50", "voc")
    named = {
        name.removeprefix("backbone."): value for name, value in ours.items() if name.startswith("backbone.")
    }
    official = {
        re.sub(r"^stem\.7\.", "bn1.", name)
        if name.startswith("stem.7.")
        else re.sub(r"^stem\.", "conv1.", name): value
        for name, value in named.items()
    }
    assert {"conv1.0.weight", "conv1.6.weight", "bn1.weight"} <= set(official)
    loaded = checkpoints.load_backbone(
        saved(tmp_path / "a.pth", official | {"fc.weight": torch.ones(2)}), ours
    )
    assert set(loaded) == {name for name in ours if name.startswith("backbone.")}


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"--checkpoint: .*pipe is no regular file"):
        taskgrid.make_grid("voc", "demo", "none", checkpoint=tmp_path / "pipe").cells()


def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    (cell,) = taskgrid.make_grid("voc", "demo", "none", iterations=1).cells()
    settings = Settings(folder=tmp_path)
    with training.alone(tmp_path, cell, 0):
        ((_, _, outcome),) = training.settle_tasks([cell], settings, Monitor())
    assert (outcome.status, outcome.columns["reason"]) == ("skipped", "another process is training it")


def test_a_malicious_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match="more than tensors"):
        checkpoints.load(saved(tmp_path / "evil.pth", {"state_dict": Malicious()}), {})
    assert not Path("struck").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match=r"file\.pth"):
        checkpoints.load(tmp_path / "file.pth", {})


# The plan


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"task": "vocs"}, "no task"),
        ({"preset": "demos"}, "--preset"),
        ({"models": "resnet"}, "--model"),
        ({"models": ""}, "--model is empty"),
        ({"specs": ""}, "--blocks is empty"),
        ({"preset": ""}, "--preset"),
        ({"preset": "demo", "cues": ","}, "--cue is empty"),
        ({"seeds": "a"}, "--seeds"),
        ({"preset": "demo", "cues": "3"}, "--cue"),
        ({"preset": "paper", "cues": "14"}, "--cue is for"),
        ({"scoring": "best"}, "--scoring"),
        ({"scoring": "single,ms-flip-logits"}, "--scoring"),
        ({"dtypes": "float16"}, "--dtypes"),
        ({"checkpoint": Path("absent")}, "--checkpoint"),
    ],
)
def test_what_is_not_known_is_a_mistake(axes: dict[str, Any], words: str) -> None:
    given = {"task": "voc", "preset": None, "specs": "none"} | axes
    with pytest.raises(UsageError, match=words):
        taskgrid.make_grid(**given).cells()


def test_a_network_has_its_own_block_with_its_own_options_unless_others_are_asked_for() -> None:
    def label(blocks: str | None) -> str:
        (cell,) = taskgrid.make_grid("ade20k", None, blocks, models="light-ham-d256-van-tiny").cells()
        return cell.label

    assert label(None) == label("light-ham") == "light-ham[rank=16]"
    assert label("light-ham[rank=8]") == "light-ham[rank=8]"
    assert label("light-ham[rank=64]") == "light-ham", "asked for, though it is the block's default"
    assert label("a2") == "a2"


def test_an_option_that_is_typed_is_not_the_networks_own_choice() -> None:
    """The demo's network scales attention's scores, unless it is told not to, in one command too."""
    cells = taskgrid.make_grid("voc", "demo", "self-attn,self-attn[scale=False/True]").cells()
    assert [cell.label for cell in cells] == ["self-attn[scale=True]", "self-attn"]


def test_a_seed_is_trained_once_however_it_is_written() -> None:
    assert [cell.seed for cell in taskgrid.make_grid("voc", "demo", "none", seeds="0,00,1").cells()] == [0, 1]


def test_only_the_last_stage_is_scored_on_several_scales() -> None:
    (cell,) = taskgrid.make_grid("voc", "paper-trainval", "none", scoring="ms-flip-logits").cells()
    assert [stage["scoring"] for stage in cell.protocol["stages"]] == ["single", "ms-flip-logits"]


def test_other_data_are_another_cell(tmp_path: Path) -> None:
    """The lists and the labels' names and sizes are what data are told apart by."""

    def ids() -> set[str]:
        return {cell.id for cell in taskgrid.make_grid("voc", "paper", "none", data_root=tmp_path).cells()}

    nowhere = ids()
    voc_layout(tmp_path, VOC, {}, 21)
    first = ids()
    assert first == ids() != nowhere
    names = tmp_path / VOC.folder / "ImageSets/Segmentation/val.txt"
    names.write_text(names.read_text().splitlines()[0] + "\n")
    fewer = ids()
    assert fewer != first
    Image.new("L", (7, 7)).save(next((tmp_path / VOC.folder / "SegmentationClass").iterdir()))
    assert ids() not in (first, fewer)


def test_a_folder_in_the_place_of_a_list_is_missing_and_a_file_in_that_of_a_folder(tmp_path: Path) -> None:
    voc_layout(tmp_path, VOC, {}, 21)
    assert VOC.missing(tmp_path) == []
    names, images = (
        tmp_path / VOC.folder / part for part in ("ImageSets/Segmentation/val.txt", "JPEGImages")
    )
    names.unlink()
    names.mkdir()
    shutil.rmtree(images)
    images.touch()
    assert VOC.missing(tmp_path) == [images, names]
    assert VOC.missing(tmp_path / ("x" * 300))


class Miscounted(blocks.ContextBlock):
    """Says that it has a parameter more, or one product more."""

    def __init__(self, channels: int, *, params: int = 0, products: int = 0) -> None:
        super().__init__(channels)
        self.said = params, products

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def macs(self, height: int, width: int) -> int:
        return self.said[1]

    def param_count(self) -> int:
        return self.said[0]


@pytest.mark.parametrize(("option", "words"), [("params", "param_count"), ("products", "macs")])
def test_an_estimate_of_a_block_that_counts_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, option: str, words: str
) -> None:
    blocks.names()  # find those of the catalogue first
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))
    about = dict.fromkeys(("title", "family", "summary", "complexity", "formula"), "for a test")
    blocks.register("miscounted", **about, paper=None)(Miscounted)
    grid = taskgrid.make_grid("ade20k", None, f"miscounted[{option}=7]", models="light-ham-van-tiny")
    with pytest.raises(UsageError, match=rf"{words}\(\) gives 7, but there are 0"):
        networks.estimate(grid.cells())


def test_the_help_lists_every_preset() -> None:
    from click.testing import CliRunner

    from ctxbench.cli import main

    text = CliRunner().invoke(main, ["task", "--help"]).output
    for name, presets in (RECIPES | GENERATED).items():
        assert f"{name:14}  {', '.join(presets)}" in text


def test_images_of_another_design_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legend, "Recipe", partial(legend.Recipe, train=2, val=1))
    (cell,) = taskgrid.make_grid("voc", "demo", "none").cells()
    cell.prepare(tmp_path)
    folder = datasets.legend_folder(tmp_path, "14")
    before = {path.name: path.read_bytes() for path in folder.rglob("*.*")}
    (folder / "JPEGImages" / "train_0000.png").write_bytes(b"")
    cell.prepare(tmp_path)
    assert not (folder / "JPEGImages" / "train_0000.png").read_bytes(), "what says that it is whole is kept"
    (folder / "recipe.json").write_text("{}")
    cell.prepare(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.rglob("*.*")} == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["legend-14"]


def test_every_cell_has_an_id_of_its_own() -> None:
    grids = [
        {"seeds": "0,1"},
        {"cues": "8"},
        {"iterations": 5},
        {"scoring": "ms-flip-logits"},
        {"dtypes": "bfloat16"},
        {},
    ]
    cells = [cell for axes in grids for cell in taskgrid.make_grid("voc", "demo", "none,a2", **axes).cells()]
    assert len({cell.id for cell in cells}) == 12
