"""The command line: what it prints, where it prints it, and the exit code it leaves."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import blocks
from blocks import registry
from ctxbench import __version__, environment, measure, presets, subject
from ctxbench.cli import main
from ctxbench.reports import published
from ctxbench.spec import Grid
from ctxbench.store import RunStore
from tasks import legend
from tasks.segmentation import recipes
from tests.factories import make_record
from tests.test_benchmarks import entry, save

HERE = Path(__file__).parents[1]
QUICK = ("--channels", "8", "--resolutions", "4")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder, a catalogue to be thrown away, and no more rounds than are needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("CTXBENCH_EXECUTOR", "inline")
    monkeypatch.setattr(environment, "git_state", lambda: ("0123456789ab", False))
    monkeypatch.setattr(subject, "REFERENCE_SIDE", {"cpu": 8})
    monkeypatch.setattr(measure, "BUDGET_S", 0.0)
    blocks.names()  # find those of the catalogue first
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ctxbench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="ctxbench")


def profile(*arguments: str | Path) -> Result:
    return ctxbench("profile", *arguments, *QUICK)


def refusal(*arguments: str | Path) -> str:
    """The one line on standard error with which the user is sent back."""
    result = ctxbench(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("ctxbench: ")
    assert len(lines[0]) < 600
    return lines[0]


PLUGIN = """
import os, signal
from pathlib import Path
import torch
from torch import Tensor, nn
from blocks import ContextBlock, register

@register("{name}", title="Mine", family="mine", summary="adds the mean", complexity="O(n)",
          formula="Y = X + W mean(X)", paper=None)
class Mine(ContextBlock):
    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__(channels)
        self.mix = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        {before}
        return x + self.mix(x.mean((2, 3), keepdim=True))

    def macs(self, height: int, width: int) -> int:
        return self.channels**2

    def param_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
"""


def plugin(path: Path, name: str = "my-block", before: str = "pass") -> Path:
    """A file that registers a block; `before` is what its forward does first."""
    path.write_text(PLUGIN.format(name=name, before=before))
    return path


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# Exit codes


def test_success_is_0_and_prints_a_table_and_where_the_records_are(tmp_path: Path) -> None:
    result = profile("--blocks", "none,a2", "--modes", "infer,train", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for part in (
        "1x8x4x4, inference, float32",
        "training",
        "a2",
        "latency (ms)",
        "/ none",
        "ctxbench report",
    ):
        assert part in result.stdout
    assert len(files(tmp_path / "run" / "records")) == 4


def test_the_default_folder_is_named_after_the_grid() -> None:
    for _ in range(2):
        assert profile("--blocks", "none", "--estimate").exit_code == 0
    assert profile("--blocks", "a2", "--estimate").exit_code == 0
    runs = [path.name for path in Path("results/runs").iterdir()]
    assert len(runs) == 2
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) for name in runs)


def test_a_failed_cell_is_1_and_the_others_are_measured(tmp_path: Path) -> None:
    mine = plugin(tmp_path / "mine.py", before="raise RuntimeError('it broke')")
    result = profile("--blocks", "my-block,none", "--plugin", mine)
    assert result.exit_code == 1
    assert "error: it broke" in result.stdout
    assert re.search(r"none .*±", result.stdout)
    assert "Traceback" not in result.output


def test_a_block_that_wants_to_leave_python_is_an_error_like_any_other(tmp_path: Path) -> None:
    mine = plugin(tmp_path / "mine.py", before="raise SystemExit(0)")
    result = profile("--blocks", "my-block,none", "--plugin", mine)
    assert result.exit_code == 1
    assert re.search(r"none .*±", result.stdout)


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a compiler")
def test_a_compiled_block_is_measured_in_both_modes() -> None:
    result = profile("--blocks", "ham-nmf[rank=4]", "--compile", "--modes", "infer,train", "--json")
    assert result.exit_code == 0, result.output
    for record in json.loads(result.stdout):
        assert record["compiled"]
        assert record["first_call_ms"] > record["latency_ms_median"]


def test_two_shards_fill_one_folder_and_neither_does_the_others_part(tmp_path: Path) -> None:
    command = ("profile", "--blocks", "none,a2", "--channels", "8", "--resolutions", "4,6,8", "--estimate")
    for number, count in ((0, 4), (1, 6)):
        assert ctxbench(*command, "--shard", f"{number}/2").exit_code == 0
        assert len(files(Path("results/runs")) & set(Path().glob("results/runs/*/records/*"))) == count
    assert "6 of 6 cells are known already" in ctxbench(*command).stderr
    assert "too few inputs" in refusal(*command, "--shard", "3/4")


def test_runs_are_compared_and_a_regression_is_3(tmp_path: Path) -> None:
    for run, latency in (("base", 1.0), ("new", 2.0)):
        times = {"latency_ms_median": latency, "latency_ms_ci_low": latency, "latency_ms_ci_high": latency}
        samples = {"latency_samples_json": json.dumps([latency] * 10)}
        record = make_record(**(times | samples))
        (tmp_path / run / "records").mkdir(parents=True)
        (tmp_path / run / "records" / f"{record.cell_id}.json").write_text(record.to_json())
    assert ctxbench("compare", "base", "new").exit_code == 0
    found = ctxbench("compare", "base", "new", "--fail-on", "latency_ms_median:5%")
    assert found.exit_code == 3
    assert "1 SLOWER" in found.stdout
    assert ctxbench("compare", "new", "base", "--fail-on", "latency_ms_median:5%").exit_code == 0
    assert "METRIC" in refusal("compare", "base", "new", "--fail-on", "speed")
    assert json.loads(ctxbench("compare", "base", "new", "--json").stdout)["cells"]


@pytest.mark.parametrize("command", [("report",), ("export", "--format", "csv"), ("compare", "run")])
def test_what_is_not_whole_is_1_only_if_that_is_asked_for(command: tuple[str, ...]) -> None:
    assert profile("--blocks", "none", "--estimate", "--out", "run").exit_code == 0
    assert ctxbench(*command, "run", "--strict").exit_code == 0
    damaged = Path("run/records/0123456789abcdef.json")
    damaged.write_text("{")
    assert ctxbench(*command, "run").exit_code == 0
    result = ctxbench(*command, "run", "--strict")
    assert result.exit_code == 1
    assert "--strict: 1 unreadable file(s)" in result.stderr
    damaged.unlink()
    RunStore.open(Path("run")).write_plan(["0123456789abcdef"])
    result = ctxbench(*command, "run", "--strict")
    assert (result.exit_code, "1 planned cell(s) without a record" in result.stderr) == (1, True)


def test_a_report_tells_how_many_planned_cells_are_missing() -> None:
    command = ("profile", "--blocks", "none,a2", "--channels", "8", "--resolutions", "4,6", "--estimate")
    assert ctxbench(*command, "--shard", "0/2", "--out", "run").exit_code == 0
    assert ctxbench("report", "run").exit_code == 0
    assert "2 of 4 planned cells" in Path("report/index.html").read_text()


def test_what_pytest_benchmark_saved_is_reported_too() -> None:
    save(Path("bench.json"), entry("test_sum"))
    assert ctxbench("report", "bench.json", "--out", "alone").exit_code == 0
    assert "test_sum" in Path("alone/index.html").read_text()
    assert profile("--blocks", "none", "--estimate", "--out", "run").exit_code == 0
    assert ctxbench("report", "run", "bench.json").exit_code == 0
    page = Path("report/index.html").read_text()
    assert "test_sum" in page
    assert "1x8x4x4" in page


@pytest.mark.parametrize("form", ["csv", "json", "latex", "parquet"])
def test_a_run_is_exported_to_a_file_or_to_standard_output(form: str) -> None:
    assert profile("--blocks", "none", "--estimate", "--out", "run").exit_code == 0
    assert ctxbench("export", "run", "--format", form, "--out", "file").exit_code == 0
    assert ctxbench("export", "run", "--format", form).stdout_bytes == Path("file").read_bytes()
    assert "no folder" in refusal("export", "run", "--format", form, "--out", "absent/file")


def test_a_plan_can_be_read_by_programs() -> None:
    (cell,) = json.loads(profile("--blocks", "a2[c_m=4]", "--dry-run", "--json").stdout)
    assert cell["options"] == {"c_m": 4, "c_n": None}
    assert not Path("results").exists()


def test_a_skipped_cell_is_a_result_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda device: 0)
    result = profile("--blocks", "self-attn")
    assert result.exit_code == 0
    assert "skipped: needs" in result.stdout


@pytest.mark.parametrize("blow", ["SIGINT", "SIGTERM"])
def test_an_interrupt_is_130_and_the_same_command_goes_on_from_there(tmp_path: Path, blow: str) -> None:
    """A real Ctrl-C, or a scheduler's signal, in the middle of the second resolution."""
    strike = "x.shape[-1] == 6 and not Path('struck').exists() and "
    strike += f"(Path('struck').touch(), os.kill(os.getpid(), signal.{blow}))"
    mine = plugin(tmp_path / "mine.py", before=strike)
    command = ("profile", "--blocks", "none,my-block", "--resolutions", "4,6", "--channels", "8")
    command += ("--plugin", str(mine), "--out", "run")
    # The estimate of the block meets the interrupt first.
    result = ctxbench(*command)
    assert result.exit_code == 130
    assert "interrupted; resume with: ctxbench" in result.stderr
    assert "Traceback" not in result.output
    kept = {path: path.stat().st_mtime_ns for path in files(Path("run/records"))}
    assert len(kept) == 2
    again = ctxbench(*command)
    assert again.exit_code == 0
    assert "2 of 4 cells are known already" in again.stderr
    now = files(Path("run/records"))
    assert len(now) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_full_disk_is_1_and_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = profile("--blocks", "none", "--estimate", "--out", "run")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "run/" in result.stderr, "where there is no space"
    assert "Traceback" not in result.output
    assert [path for path in files(Path("run")) if path.suffix != ".json"] == []


# Bad input


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--blocks ham-nfm", ["unknown block 'ham-nfm'", "did you mean 'ham-nmf'?"]),
        ("--blocks zzz", ["unknown block 'zzz'", "self-attn"]),
        ("--blocks ham-nmf[rnk=8]", ["no option 'rnk'", "rank"]),
        ("--blocks ham-nmf[gradient=full]", ["gradient='full' is not accepted", "one-step"]),
        ("--blocks ham-nmf[rank=many]", ["rank='many' is not accepted", "whole number"]),
        ("--blocks ham-nmf[rank=1or]", ["rank='1or' is not accepted", "whole number"]),
        ("--blocks self-attn[heads=3] --channels 8", ["self-attn[heads=3]", "channels", "divisor of 8"]),
        ("--blocks none --modes walk", ["--modes: 'walk'", "infer, train"]),
        ("--blocks none --dtypes int8", ["--dtypes: 'int8'", "float32"]),
        ("--blocks none --dtypes float16 --device cpu", ["float16", "bfloat16"]),
        ("--blocks none --device tpu", ["--device: 'tpu'", "auto, cpu, cuda"]),
        ("--preset papr", ["--preset: 'papr'", "paper"]),
        ("--blocks none --resolutions 0", ["--resolutions: '0'", "64x128"]),
        ("--blocks none --resolutions -5", ["--resolutions: '-5'", "64x128"]),
        ("--blocks none --resolutions big", ["--resolutions: 'big'", "64x128"]),
        ("--blocks none --batch 0", ["--batch: '0'", "above 0"]),
        ("--blocks none --channels -1", ["--channels: '-1'", "above 0"]),
        ("--blocks none --threads 0", ["--threads", "0"]),
        ("--blocks none --threads many", ["--threads", "many"]),
        ("--blocks none --out file", ["file", "--out"]),
        ("--blocks none --out file/run", ["file/run", "--out"]),
        ("", ["--blocks is missing", "--blocks ham-nmf,self-attn"]),
        ("--modes train", ["--blocks is missing"]),
        ("--blocks none --timeout nan", ["--timeout", "nan is not a finite number"]),
        ("--blocks none --budget inf", ["--budget", "inf"]),
        ("--blocks none --colour red", ["--colour"]),
        ("--blocks none extra", ["extra"]),
        ("--blocks", ["--blocks"]),
    ],
)
def test_a_mistake_is_2_and_one_line_that_says_what_to_type(arguments: str, parts: list[str]) -> None:
    Path("file").write_text("mine")
    line = refusal("profile", *arguments.split())
    for part in parts:
        assert part in line
    assert files(Path()) == {Path("file")}, "nothing is written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_gpu_is_a_mistake_only_if_it_was_asked_for() -> None:
    assert "use --device cpu" in refusal("profile", "--blocks", "none", "--device", "cuda")
    assert profile("--blocks", "none", "--estimate").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("blocks ham-nfm", ["unknown block 'ham-nfm'", "did you mean 'ham-nmf'?"]),
        ("blocks none --bibtex", ["'none'", "no paper"]),
        ("blocks --bibtex", ["--bibtex needs the name of a block", "ctxbench blocks NAME --bibtex"]),
        ("report nowhere", ["nowhere holds no run", "ctxbench profile --out nowhere"]),
        ("report file", ["file is a file", "folder of a run"]),
        ("report empty", ["empty holds no run"]),
        ("report", ["results/runs", "name the folders"]),
        ("report run --baseline nine", ["no record of 'nine'", "ham-nmf"]),
        ("report run --out file", ["cannot write", "file"]),
        ("profle", ["profle"]),
        ("--colour", ["--colour"]),
    ],
)
def test_other_commands_tell_mistakes_the_same_way(arguments: str, parts: list[str]) -> None:
    Path("file").write_text("mine")
    Path("empty").mkdir()
    Path("run/records").mkdir(parents=True)
    record = make_record()
    Path(f"run/records/{record.cell_id}.json").write_text(record.to_json())
    line = refusal(*arguments.split())
    for part in parts:
        assert part in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_is_a_mistake() -> None:
    Path("run/records").mkdir(parents=True)
    Path("run/records").chmod(0)
    assert "Permission denied" in refusal("report", "run")


def test_measurements_of_another_environment_are_a_mistake_with_two_ways_out() -> None:
    assert profile("--blocks", "none", "--out", "run").exit_code == 0
    line = refusal("profile", "--blocks", "none", "--out", "run", "--threads", "2", *QUICK)
    assert "threads 1 -> 2" in line
    assert "--fresh" in line
    assert profile("--blocks", "none", "--out", "run", "--threads", "2", "--fresh").exit_code == 0


# What is printed


@pytest.mark.parametrize("more", [[], ["--estimate"]], ids=["measured", "estimated"])
def test_json_is_the_records_and_nothing_else_on_standard_output(more: list[str]) -> None:
    result = profile("--blocks", "none,a2", "--json", "--out", "run", *more)
    printed = json.loads(result.stdout)
    assert [record["spec"] for record in printed] == ["none", "a2"]
    on_disk = [json.loads(path.read_text()) for path in Path("run/records").iterdir()]
    assert sorted(printed, key=str) == sorted(on_disk, key=str)
    assert printed[0]["memory_measured_bytes"] is None


def test_json_of_a_failure_is_json_too(tmp_path: Path) -> None:
    mine = plugin(tmp_path / "mine.py", before="raise RuntimeError('it broke')")
    result = profile("--blocks", "my-block", "--json", "--plugin", mine)
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["reason"] == "it broke"


def test_a_dry_run_prints_the_cells_and_writes_nothing() -> None:
    result = profile("--blocks", "none,ham-nmf[rank=4/8]", "--dry-run", "--out", "run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    expected = Grid(blocks="none,ham-nmf[rank=4/8]", resolutions="4", channels="8").cells()
    assert [line.split()[1] for line in lines] == [cell.label for cell in expected]
    assert all("1x8x4x4" in line and "float32" in line and "infer" in line for line in lines)
    assert list(Path().iterdir()) == []


def test_a_run_started_again_measures_nothing_and_prints_the_same() -> None:
    command = ("--blocks", "none,a2", "--out", "run")
    first = profile(*command)
    again = profile(*command)
    assert again.stdout == first.stdout
    assert "2 of 2 cells are known already" in again.stderr


def test_blocks_lists_every_block() -> None:
    result = ctxbench("blocks")
    assert result.exit_code == 0
    for name in blocks.names():
        assert re.search(rf"\b{name}\b", result.stdout)


def test_a_block_is_shown_with_its_options_and_its_paper() -> None:
    result = ctxbench("blocks", "ham-nmf")
    for part in ("O(n d^2 + n d r)", "rank=64", "gradient=one-step", "ICLR 2021", "https://"):
        assert part in result.stdout
    bibtex = ctxbench("blocks", "ham-nmf", "--bibtex").stdout
    assert bibtex.startswith("@inproceedings{geng2021attention")
    assert bibtex.strip().endswith("}")


def test_report_writes_a_page_and_says_where() -> None:
    profile("--blocks", "none,self-attn", "--out", "run")
    result = ctxbench("report", "run", "--out", "here")
    assert (result.exit_code, result.stdout) == (0, "report: here/index.html\n")
    assert "self-attn" in Path("here/index.html").read_text(encoding="utf-8")


def test_the_papers_preset_prints_the_published_numbers_beside_ours() -> None:
    result = ctxbench("profile", "--preset", "paper", "--estimate", "--out", "run")
    assert result.exit_code == 0
    assert "Published numbers beside those found here" in result.stdout
    lines = result.stdout.splitlines()
    printed = [
        row
        for row in published.load("paper")
        if row["table"] == "Table 3"
        and row["metric"] in published.PROFILE_METRICS
        and row["block"] in blocks.names()
    ]
    assert len(printed) == 28
    for row in printed:
        value = f"{float(row['value']):,.{len(row['value'].partition('.')[2])}f}"
        quantity = published.TITLES[row["metric"]]
        assert [
            line for line in lines if f" {row['spec']} " in line and quantity in line and value in line
        ], row


def test_a_presets_axes_can_be_changed() -> None:
    result = ctxbench("profile", "--preset", "paper", "--resolutions", "8", "--modes", "infer", "--dry-run")
    assert len(result.stdout.splitlines()) == 7
    assert all("1x512x8x8" in line for line in result.stdout.splitlines())


def test_the_demo_goes_from_cells_to_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {"blocks": "none,self-attn", "channels": "8"}
    grids = Grid(resolutions="4,6", **small), Grid(resolutions="8", estimated=True, **small)
    monkeypatch.setattr(presets, "DEMO", grids)
    monkeypatch.setattr(presets, "DEMO_SHOWN", (4, 6, 8, 128), raising=False)
    monkeypatch.setitem(recipes.RECIPES["voc"], "demo", (dataclasses.replace(recipes.DEMO, iterations=2),))
    monkeypatch.setattr(presets, "DEMO_UPDATES", 2)
    monkeypatch.setattr(legend, "Recipe", functools.partial(legend.Recipe, train=8, val=2))
    result = ctxbench("demo", "--out", "tour")
    assert result.exit_code == 0, result.output
    assert "voc (demo): localnet on legend-14" in result.stdout
    assert "digits (16x16): resgan on digits-16x16, 2 iterations" in result.stdout
    assert len(list(Path("tour/run/panels").iterdir())) == 6
    assert "tour/index.html" in result.stdout
    assert "self-attn" in Path("tour/index.html").read_text(encoding="utf-8")


# Tasks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("voc",), "without data: ctxbench task voc --preset demo"),
        (("voc", "--preset", "demo", "--blocks", "ham-nmff"), "did you mean 'ham-nmf'?"),
        (("vocs",), "is no task; there are voc"),
        (("voc", "--preset", "demo", "--checkpoint", "absent.pth"), "cannot read absent.pth"),
        (("voc", "--preset", "demo", "--backbone", "absent.pth"), "--backbone: cannot read absent.pth"),
        (("voc", "--backbone", "a", "--checkpoint", "b"), "one of them, please"),
        (("voc", "--preset", "demo", "--blocks", "none", "--shard", "3/9"), "divided"),
        (("ade20k", "--blocks", "danet[convs=2]", "--estimate"), "convs"),
    ],
)
def test_a_task_that_cannot_be_is_a_mistake(arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal("task", *arguments)
    assert not Path("results").exists()


def test_weights_that_do_not_fit_are_a_mistake(tmp_path: Path) -> None:
    torch.save({"backbone.weight": torch.ones(1)}, tmp_path / "file.pth")
    line = refusal(
        "task", "voc", "--preset", "demo", "--blocks", "none", "--checkpoint", tmp_path / "file.pth"
    )
    assert "does not fit: missing" in line


def test_a_task_fails_cell_by_cell_and_says_why(tmp_path: Path) -> None:
    mine = plugin(
        tmp_path / "mine.py", before="assert x.device.type == 'meta' or not self.training, 'not today'"
    )
    arguments = ["--preset", "demo", "--blocks", "my-block,none", "--plugin", mine, "--iterations", "1"]
    result = ctxbench("task", "voc", *arguments, "--out", "run", "--json")
    assert result.exit_code == 1
    found = {record["spec"]: record for record in json.loads(result.stdout)}
    assert (found["my-block"]["status"], found["none"]["status"]) == ("error", "ok")
    assert found["my-block"]["reason"] == "not today"
    assert 0 <= found["none"]["context_iou"] <= 1
    page = ctxbench("report", "run", "--out", "page")
    assert page.exit_code == 0, page.output
    assert "seed 0 error: not today" in Path("page/report.md").read_text()
    latex = ctxbench("export", "run", "--format", "latex").stdout
    assert "context IoU" in latex
    assert "compare is for profiles" in refusal("compare", "run", "run")


def test_networks_are_estimated_beside_their_published_numbers() -> None:
    arguments = ["--model", "light-ham-van-tiny", "--estimate"]
    out = ctxbench("task", "ade20k", *arguments).stdout
    assert "agrees" in out, out
    (cost,) = json.loads(ctxbench("task", "ade20k", *arguments, "--json").stdout)
    assert cost["published"]["params"] == "4.9"


def test_data_sets_are_listed_with_what_is_missing(tmp_path: Path) -> None:
    result = ctxbench("data", "list", "--data-root", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.count("not there") == 4
    assert "needs an account" in refusal("data", "fetch", "cityscapes")


# Plug-ins


def test_a_plugged_in_block_is_listed_and_measured_like_any_other(tmp_path: Path) -> None:
    mine = plugin(tmp_path / "mine.py")
    listed = ctxbench("blocks", "--plugin", mine).stdout
    assert "my-block" in listed
    assert "adds the mean" in listed
    assert "bias=True" in ctxbench("blocks", "my-block", "--plugin", mine).stdout
    result = profile("--blocks", "my-block[bias=True/False],my-*", "--plugin", mine, "--json")
    assert [(row["spec"], row["status"]) for row in json.loads(result.stdout)] == [
        ("my-block", "ok"),
        ("my-block[bias=False]", "ok"),
    ]


def test_two_plug_ins_can_be_given(tmp_path: Path) -> None:
    one, other = plugin(tmp_path / "one.py", "one"), plugin(tmp_path / "other.py", "other")
    result = profile("--blocks", "one,other", "--plugin", one, "--plugin", other, "--estimate")
    assert result.exit_code == 0


def test_an_absent_or_broken_plug_in_is_a_mistake_that_names_the_file(tmp_path: Path) -> None:
    broken = {
        "raises.py": "raise RuntimeError('first line\\nsecond line')",
        "syntax.py": "def",
        "imports.py": "import no_such_module",
        "lacks.py": PLUGIN.format(name="mine", before="pass").replace('title="Mine"', 'title=""'),
        "bad_name.py": PLUGIN.format(name="My Block", before="pass"),
    }
    expected = ("first line", "SyntaxError", "no_such_module", "lacks title", "My Block")
    for (name, text), part in zip(broken.items(), expected, strict=True):
        (tmp_path / name).write_text(text)
        line = refusal("blocks", "--plugin", name)
        assert name in line
        assert part in line
    assert "no file absent.py" in refusal("profile", "--blocks", "none", "--plugin", "absent.py")
    assert "no file" in refusal("profile", "--blocks", "none", "--plugin", tmp_path)


def test_a_name_that_is_taken_is_told_with_both_places(tmp_path: Path) -> None:
    line = refusal("blocks", "--plugin", plugin(tmp_path / "mine.py", "ham-nmf"))
    assert "mine.py" in line
    assert "hamburger.py" in line
    one, other = plugin(tmp_path / "one.py", "same"), plugin(tmp_path / "other.py", "same")
    line = refusal("blocks", "--plugin", one, "--plugin", other)
    assert "one.py" in line
    assert "other.py" in line


def run(*command: str, folder: Path = HERE) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environ, check=False
    )


def test_a_plugged_in_block_is_tried_by_the_conformance_suite(tmp_path: Path) -> None:
    good = plugin(tmp_path / "good.py", "my-good-block")
    bad = plugin(tmp_path / "bad.py", "my-bad-block", before="x.detach().clamp_(min=-1.0)")
    suite = ("-m", "pytest", "tests/test_conformance.py", "-q", "-p", "no:cacheprovider", "--tb=no")
    found = run(*suite, "--plugin", str(good), "--plugin", str(bad), "-k", "my-good-block or my-bad-block")
    failed = re.findall(r"^FAILED .*?::(\w+)\[(.*?)\]", found.stdout, re.MULTILINE)
    assert failed, found.stdout + found.stderr
    assert all("my-bad-block" in case for _, case in failed), found.stdout
    assert "test_the_input_is_never_modified" in {test for test, _ in failed}
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed is not None
    assert int(passed[1]) > 20


# Start


HELP = """
import sys
from ctxbench.cli import main
try:
    main({arguments})
finally:
    heavy = {{"torch", "pandas", "matplotlib", "numpy", "fvcore", "rich", "jinja2"}} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["profile", "--help"], ["--version"]], ids=" ".join)
def test_help_waits_for_no_heavy_package(arguments: list[str]) -> None:
    found = run("-c", HELP.format(arguments=arguments))
    assert (found.returncode, found.stderr) == (0, "")
    assert ("Usage: " in found.stdout) or __version__ in found.stdout


def test_the_program_runs_as_a_module_with_its_exit_code_and_no_traceback(tmp_path: Path) -> None:
    found = run("-m", "ctxbench", "report", "nowhere", folder=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "ctxbench: nowhere holds no run; make one with: ctxbench profile --out nowhere\n"


def test_a_baseline_that_is_not_measured_is_known_before_anything_is(tmp_path: Path) -> None:
    line = refusal("profile", "--blocks", "none,a2", "--baseline", "ccnet", "--out", tmp_path / "run")
    assert "'ccnet' is not measured; name one of none, a2" in line
    assert not (tmp_path / "run").exists()


def test_what_a_plug_in_prints_is_no_result(tmp_path: Path) -> None:
    file = plugin(tmp_path / "mine.py")
    file.write_text(file.read_text() + "\nprint('noise')\n")
    out = tmp_path / "run"
    result = profile("--blocks", "my-block", "--plugin", file, "--out", out, "--estimate", "--json")
    assert [record["spec"] for record in json.loads(result.stdout)] == ["my-block"]


@pytest.mark.parametrize("out", ["", "/", "absent/file.csv", f"{'x' * 300}/file.csv"])
def test_a_file_that_cannot_be_written_is_a_mistake(tmp_path: Path, out: str) -> None:
    profile("--blocks", "none", "--estimate", "--out", tmp_path / "run")
    refusal("export", tmp_path / "run", "--format", "csv", "--out", out)
