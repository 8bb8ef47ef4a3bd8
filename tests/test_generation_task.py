"""Image generation from the command: cells, records, tables, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import blocks
from ctxbench import gans, taskgrid
from ctxbench.cli import main
from ctxbench.generation import GenerationCell
from ctxbench.record import Record
from ctxbench.store import RunStore
from ctxbench.updates import cells_of
from tasks.generation import extractors, models, recipes
from tests.factories import torchrun
from tests.test_images import picture


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["task", *map(str, arguments), "--executor", "inline"])


def cells(task: str = "digits", specs: str = "none", **axes: Any) -> list[GenerationCell]:
    return taskgrid.make_grid(task, axes.pop("preset", None), specs, **axes).cells()


def records(folder: Path) -> list[Record]:
    found, unreadable = RunStore(folder).read()
    assert not unreadable
    return found


# Cells


def test_blocks_get_the_ranks_of_both_slots_unless_others_are_typed() -> None:
    (cell,) = cells("imagenet", "ham-nmf")
    assert (dict(cell.options)["rank"], dict(cell.other)["rank"]) == (32, 16)
    (cell,) = cells("imagenet", "ham-nmf[rank=24]")
    assert (dict(cell.options)["rank"], dict(cell.other)["rank"]) == (24, 24)


def test_every_cell_has_an_id_of_its_own(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"x")
    axes: list[dict[str, Any]] = [
        {},
        {"seeds": "1"},
        {"iterations": 5},
        {"batch": 16},
        {"dtypes": "bfloat16"},
        {"preset": "32x32"},
        {"checkpoint": weights},
        {"reference": weights},
        {"processes": 2},
    ]
    found = [cell.id for each in axes for cell in cells(specs="none,ham-nmf", **each)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits", "--preset", "8x8"), "--preset: '8x8' is not known; digits has 16x16, 32x32"),
        (("digits", "--model", "x"), "--model: not for digits"),
        (("digits", "--cue", "8"), "--cue: not for digits"),
        (("digits", "--inspect"), "--inspect: not for digits"),
        (("digits", "--scoring", "single"), "--scoring: not for digits"),
        (("digits", "--save-reference", "x"), "--save-reference goes with --score"),
        (("digits", "--score", "a", "b"), "--score: not for digits"),
        (("digits", "--download"), "--download: not for digits"),
        (("digits", "--weights", "x"), "--weights: not for digits"),
        (("imagenet", "--score", "a", "b"), "--score: a is no folder"),
        (("imagenet", "--score", "a", "b", "--preset", "x"), "--preset: not with --score"),
        (("imagenet", "--score", "a", "b", "--seeds", "3"), "--seeds: not with --score"),
        (("imagenet", "--estimate", "--speed"), "--estimate and --speed: one of them, please"),
        (("digits", "--estimate", "--out", "x"), "--out: not with --estimate"),
        (("voc", "--preset", "demo", "--speed"), "--speed: not for voc"),
        (("voc", "--preset", "demo", "--batch", "4"), "--batch: not for voc"),
        (("voc", "--preset", "demo", "--download"), "--download: not for voc"),
        (("digits", "--blocks", "self-attn[heads=3]"), "in the generator, with 32 channels"),
        (("digits", "--checkpoint", "missing.pt"), "--checkpoint: cannot read missing.pt"),
        (("digits", "--reference", "missing.npz"), "--reference: cannot read missing.npz"),
        (("imagenet",), "imagenet: no images in data/imagenet; put them there"),
    ],
)
def test_bad_input_gets_one_line_and_the_exit_code_2(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of two blocks."""
    folder = tmp_path_factory.mktemp("digits")
    result = command("digits", "--blocks", "none,ham-nmf", "--iterations", 60, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_a_record_holds_the_scores_and_what_they_mean(trained: Path) -> None:
    for record in records(trained):
        assert (record.kind, record.metric, record.status) == ("task", "fid", "ok")
        assert (record.dataset, record.images_scored) == ("digits-16x16", 1797)
        assert record.fid is not None
        assert record.extractor is not None
        assert record.extractor.startswith("digits-cnn-")
        assert record.anchors_json is not None
        anchors = json.loads(record.anchors_json)
        assert anchors["halves"]["fid"] < 1 < record.fid
        assert record.collapsed, "60 updates are too few"
        assert record.train_cpu_s is not None
        assert json.loads(record.protocol_json or "")["ema"] == 0.99


def test_training_brings_the_images_nearer(trained: Path, tmp_path: Path) -> None:
    assert command("digits", "--blocks", "none", "--iterations", 0, "--out", tmp_path).exit_code == 0
    (untrained,) = records(tmp_path)
    (better,) = (record for record in records(trained) if record.block == "none")
    assert untrained.fid is not None
    assert better.fid is not None
    assert better.fid < untrained.fid


def test_what_is_kept(trained: Path) -> None:
    for record in records(trained):
        with Image.open(trained / "panels" / f"{record.cell_id}.png") as sheet:
            assert sheet.width > 10 * 16
        on_the_way = sorted(path.name for path in (trained / "samples" / record.cell_id).iterdir())
        assert on_the_way == [f"{iteration:07d}.png" for iteration in range(6, 61, 6)]
        assert (trained / "curves" / f"{record.cell_id}.csv").read_text().count("\n") == 61
        weights = torch.load(trained / "weights" / f"{record.cell_id}.pt", weights_only=True)
        assert set(weights) == {"generator", "discriminator", "average", "protocol"}
    assert not list((trained / "work").glob("*/last.pt")), "what is done needs no checkpoint"


def test_equal_cells_give_equal_scores(trained: Path, tmp_path: Path) -> None:
    command("digits", "--blocks", "ham-nmf", "--iterations", 60, "--out", tmp_path)
    (again,) = records(tmp_path)
    (first,) = (record for record in records(trained) if record.block == "ham-nmf")
    for name in ("cell_id", "fid", "kid", "is_mean", "precision", "recall", "accuracy", "extractor"):
        assert getattr(first, name) == getattr(again, name), name


def test_weights_can_be_scored_again(trained: Path, tmp_path: Path) -> None:
    (first,) = (record for record in records(trained) if record.block == "none")
    weights = trained / "weights" / f"{first.cell_id}.pt"
    result = command(
        "digits", "--blocks", "none", "--iterations", 0, "--checkpoint", weights, "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    (again,) = records(tmp_path)
    assert (again.fid, again.recall) == (first.fid, first.recall)
    assert (again.first_weights or "").startswith("networks ")


def without_head(content: dict[str, Any]) -> object:
    del content["generator"]["head.weight"]
    return content


def with_nan(content: dict[str, Any]) -> object:
    content["average"]["head.bias"].fill_(torch.nan)
    return content


def alone(content: dict[str, Any]) -> object:
    return {"generator": content["generator"]}


def a_list(content: dict[str, Any]) -> object:
    return [content]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_head, "1 weights of 'generator' are missing"),
        (with_nan, "not finite: head.bias"),
        (alone, "holds no 'discriminator'"),
        (a_list, "holds no dictionary of weights"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    trained: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    (first,) = (record for record in records(trained) if record.block == "none")
    content = torch.load(trained / "weights" / f"{first.cell_id}.pt", weights_only=True)
    torch.save(spoil(content), tmp_path / "spoilt.pt")
    result = command(
        "digits", "--blocks", "none", "--checkpoint", tmp_path / "spoilt.pt", "--out", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_page_shows_scores_anchors_and_samples(trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(trained), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text()
    assert "### digits (16x16): resgan on digits-16x16, 60 iterations" in text
    assert "| block | seeds | FID | seeds from - to | KID | IS |" in text
    assert "### Anchors: digits" in text
    assert "The scores rank nothing" in text
    assert "what is generated" in text
    assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {"scores-0", "predictions-0"}


def test_under_torchrun_the_networks_end_equal_and_are_recorded_once(tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    torchrun(tmp_path, "process.py")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in ("generator", "discriminator", "average"):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items()), name
    assert first["drawn"] != second["drawn"], "each draws random numbers of its own"
    arguments = ("-m", "ctxbench", "task", "digits", "--blocks", "none,ham-nmf", "--iterations", "3")
    out = torchrun(tmp_path, *arguments, "--out", "run", "--json")
    assert [record["status"] for record in json.loads(out)] == ["ok", "ok"]
    assert len(list((tmp_path / "run" / "records").iterdir())) == 2


PROCESS = """
from pathlib import Path
import torch
from tasks import launch
from tasks.generation import training
from tasks.generation.data import digits
from tasks.generation.recipes import RECIPES

torch.set_num_threads(1)
rank = launch.join_processes("cpu")
recipe = RECIPES["digits"]["16x16"]
job = training.Job(recipe, recipe.layout, "ham-nmf", ({"rank": 4}, {"rank": 4}), iterations=5)
data = digits(16)
straight = training.train(job, data, Path("straight")).state
killed = "iteration 2 "

class Killed(Exception): ...

def tell(text):
    if text.startswith(killed):
        raise Killed

try:
    training.train(job, data, Path("killed"), tell)
except Killed:
    pass
torch.distributed.barrier()
resumed = training.train(job, data, Path("killed")).state
for name in training.NETWORKS:
    ours, others = getattr(straight, name).state_dict(), getattr(resumed, name).state_dict()
    assert all(torch.equal(value, others[key]) for key, value in ours.items()), name
torch.save(straight.weights() | {"drawn": torch.rand(()).item()}, f"{rank}.pt")
"""


# Twins


def test_twins_are_ranked_by_their_agreement(tmp_path: Path) -> None:
    result = command("twins", "--blocks", "none", "--iterations", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (record,) = records(tmp_path)
    assert record.metric == "agreement"
    assert record.agreement is not None
    assert abs(record.agreement) < 0.2
    assert "agreement (kappa)" in result.stdout
    assert "at chance" in result.stdout


# Costs and speed


def test_costs_of_both_networks_are_those_of_the_trunk_and_the_block() -> None:
    plain, with_block = gans.estimate(cells("imagenet", "none,self-attn"))
    assert plain.params == pytest.approx(42.0e6 + 39.4e6, rel=1e-3)
    assert plain.generator.block_macs == 0
    assert plain.macs == plain.macs_formula
    added = with_block.generator.macs - plain.generator.macs
    assert added == with_block.generator.block_macs == blocks.create("self-attn", 256).macs(32, 32)
    assert with_block.generator.slot == (256, 32, 32)
    assert with_block.discriminator.slot == (128, 32, 32)
    assert with_block.memory_bytes > plain.memory_bytes


def test_estimates_of_every_block_agree_with_their_closed_forms() -> None:
    specs = ",".join(blocks.names())
    assert len(gans.estimate(cells("digits", specs))) == len(blocks.names())


def test_one_update_is_timed_with_each_block(tmp_path: Path) -> None:
    result = command("digits", "--blocks", "none,ham-nmf", "--speed", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    first, second = records(tmp_path)
    assert {first.kind, second.kind} == {"step"}
    assert first.rounds_id == second.rounds_id, "side by side"
    for record in (first, second):
        assert record.latency_ms_median is not None
        assert record.macs_counted == record.macs_formula
        assert (record.task, record.preset, record.batch) == ("digits", "16x16", 32)
    assert "digits (16x16): one update of both networks, 32 images" in result.stdout


def test_updates_do_not_depend_on_seeds_and_data() -> None:
    assert len(cells_of(cells(seeds="0,1", specs="none,ham-nmf"))) == 2
    assert len(cells_of([*cells(batch=8), *cells(batch=16)])) == 2


# Inception and folders


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random weights of the right shapes."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = module.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
            for layer in network.modules():
                if isinstance(layer, torch.nn.Conv2d):  # the usual ones let features fade away
                    torch.nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def known(inception: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for the published one."""
    import hashlib

    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(inception.read_bytes()).hexdigest())
    return inception


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of images in two classes, of several sizes and kinds."""
    made, real = (tmp_path_factory.mktemp(name) for name in ("made", "real"))
    kinds = ((32, 32), "RGB"), ((48, 40), "L"), ((33, 50), "RGBA")
    for seed in range(16):
        size, mode = kinds[seed % 3]
        picture(made / "ab"[seed % 2] / f"{seed}.png", size, mode, seed)
        picture(real / "ab"[seed % 2] / f"{seed}.png", size, mode, 100 + seed)
    return made, real


def test_two_folders_are_scored_in_inceptions_feature_space(
    known: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "reference.npz"
    result = command("imagenet", "--score", *folders, "--weights", known, "--json", "--save-reference", kept)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["scores"]["fid"] is None, "16 images for 2048 features"
    assert (found["count"], found["real_count"]) == (16, 16)
    assert found["extractor"].startswith("inception-v3-compat-")
    assert found["scores"]["kid"] != 0
    again = command("imagenet", "--score", folders[0], kept, "--weights", known, "--json")
    assert json.loads(again.stdout) == found
    shown = command("imagenet", "--score", folders[0], kept, "--weights", known)
    assert "Too few images for a Frechet distance" in shown.stdout
    assert "half of the real images" in shown.stdout


def test_scores_in_inceptions_feature_space_are_those_of_torch_fidelitys_own_pipeline(
    known: Path, folders: tuple[Path, Path]
) -> None:
    """Features extracted and scored by its own loaders, from the same images."""
    from torch_fidelity import calculate_metrics

    from tasks.generation import scoring
    from tasks.generation.data import Listing
    from tasks.generation.judging import features_of, pictures

    extractor = extractors.inception(known)
    ours = [features_of(pictures(Listing.of(folder)), extractor)[0] for folder in folders]
    assert (ours[0].values.shape, ours[0].logits.shape) == ((16, 2048), (16, 1008))
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        kid=True,
        kid_subsets=scoring.KID_SUBSETS,
        kid_subset_size=8,
        samples_find_deep=True,
        feature_extractor_weights_path=str(known),
        batch_size=1,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours[0].values.std(0).mean() > 0.01
    assert theirs["kernel_inception_distance_mean"] != 0
    assert scoring.compare(*ours).kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


def test_a_gan_learns_a_folder_and_is_scored_by_inception(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of ImageNet, with small networks."""
    small = dataclasses.replace(
        recipes.RECIPES["imagenet"]["hamgan-baby"],
        layout=recipes.small_layout(channels=3, halvings=2),
        iterations=2,
        batch=4,
        count=10,
        usual={"rank": (4, 4)},
    )
    monkeypatch.setitem(recipes.RECIPES, "imagenet", {"hamgan-baby": small})
    for split, count in (("train", 12), ("val", 16)):
        for seed in range(count):
            picture(tmp_path / "data/imagenet" / split / "ab"[seed % 2] / f"{seed}.png", seed=seed)
    arguments = ("imagenet", "--data-root", tmp_path / "data", "--out", tmp_path / "run", "--weights", known)
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    (record,) = records(tmp_path / "run")
    assert (record.metric, record.fid, record.images_scored) == ("kid", None, 10)
    assert record.accuracy is None, "Inception's classes are others"
    assert "Too few images for a Frechet distance" in result.stdout
    assert record.reason is None
    shutil.rmtree(tmp_path / "data/imagenet/val/b")
    assert "differ in classes: b" in command(*arguments).stderr
    shutil.rmtree(tmp_path / "data/imagenet/train")
    assert "has val and no train" in command(*arguments).stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        (b"other weights", "its SHA-256 begins with"),
    ],
)
def test_weights_that_are_not_inceptions_are_refused(
    content: bytes | None, words: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    result = command("imagenet", "--score", *folders, "--weights", path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--download" in result.stderr


def test_without_weights_the_file_and_its_place_are_named(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = command("imagenet", "--score", *folders)
    assert result.exit_code == 2
    assert "weights-inception-2015-12-05-6726825d.pth" in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is fetched that was not asked for"


def test_one_image_is_too_few_to_score(known: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    result = command("imagenet", "--score", tmp_path / "one", folders[1], "--weights", known)
    assert result.exit_code == 2
    assert "1 generated images are too few to score; 8 at least" in result.stderr


def test_nan_in_a_generator_fails_its_cell_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = models.Generator.forward

    def broken(self: models.Generator, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = forward(self, noise, labels)
        return images if isinstance(self.slot.block, type(blocks.create("none", 8))) else images * torch.nan

    monkeypatch.setattr(models.Generator, "forward", broken)
    result = command("digits", "--blocks", "ham-nmf,none", "--iterations", 2, "--out", tmp_path)
    assert result.exit_code == 1
    status = {record.block: (record.status, record.reason) for record in records(tmp_path)}
    assert status["none"][0] == "ok"
    assert status["ham-nmf"] == ("error", "a loss is not finite after 1 iterations")


def kept_reference(run: Path) -> Path:
    (path,) = run.glob("data/*/reference-*.npz")
    return path


def test_a_saved_reference_serves(trained: Path, tmp_path: Path) -> None:
    reference = ("--reference", kept_reference(trained))
    result = command("digits", "--blocks", "none", "--iterations", 60, *reference, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (record,) = records(tmp_path)
    (first,) = (record for record in records(trained) if record.block == "none")
    assert record.fid == first.fid


@pytest.mark.parametrize("preset", ["32x32", None])
def test_a_reference_that_cannot_serve_is_refused_before_the_training(
    trained: Path, tmp_path: Path, preset: str | None
) -> None:
    path = tmp_path / "reference.npz"
    shutil.copy(kept_reference(trained), path)
    if preset is None:
        path.write_bytes(path.read_bytes()[:-5000])
    arguments = ("--preset", preset) if preset else ()
    result = command("digits", "--blocks", "none", "--reference", path, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert ("is of extractor" if preset else "holds no reference") in result.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_run_keeps_is_made_anew_where_it_is_damaged(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for path in run.glob("data/*/*"):
        path.write_bytes(b"PK\x03\x04" + path.read_bytes()[: path.stat().st_size // 2])
    assert command("digits", "--blocks", "none", "--iterations", 60, "--out", run, "--fresh").exit_code == 0
    (first,) = (record for record in records(trained) if record.block == "none")
    (again,) = (record for record in records(run) if record.block == "none")
    assert again.fid == first.fid


def test_a_place_for_a_reference_is_tried_before_the_images_are_scored(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.npz", "cannot write to")):
        result = command("imagenet", "--score", *folders, "--save-reference", place)
        assert result.exit_code == 2
        assert words in result.stderr


def test_a_block_that_counts_wrongly_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks.info("a2").cls, "macs", lambda self, height, width: 7)
    result = command("digits", "--blocks", "a2", "--iterations", 2, "--out", tmp_path)
    assert result.exit_code == 1
    (record,) = records(tmp_path)
    assert record.status == "invalid"
    assert "macs() gives" in (record.reason or "")


def test_scoring_random_weights_is_told(tmp_path: Path) -> None:
    result = command("digits", "--blocks", "none", "--iterations", 0, "--out", tmp_path)
    assert "nothing is trained" in result.stderr
