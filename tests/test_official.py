"""The comparison with official implementations: of a made-up one, and results of those that are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import blocks
from tests.bench.official import __main__ as program
from tests.bench.official import contest, implementations
from tests.bench.official.comparison import Comparison, Theirs, given
from tests.bench.official.sources import Official, Package, Repository, SourceError

pytestmark = pytest.mark.filterwarnings("ignore")  # mmcv's builders warn of themselves

GATE = """
import torch
import settings
from fused import scale

print("a constructor that talks")


class Gate(torch.nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, inner, 1), torch.nn.ReLU(),
            torch.nn.Conv2d(inner, channels, 1), torch.nn.Sigmoid(),
        )

    def forward(self, x):
        return scale(x, self.layers(x.mean((2, 3), keepdim=True)).cuda() * settings.FACTOR)
"""
INSTALLED = [each for each in implementations.COMPARISONS if isinstance(each.official.source, Package)]
SMALL = ["--channels", "16", "--sizes", "8", "--budget", "0"]


def build(ours: Any, official: ModuleType, side: int) -> Theirs:
    theirs = official.Gate(ours.channels, ours.inner)
    given(theirs, ours.gate)
    return Theirs(theirs, theirs)


def git(folder: Path, *arguments: str) -> str:
    person = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(folder), *person, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one implementation of `se`, at a commit that is not its last."""
    folder = tmp_path / "someone" / "gates"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "gate.py").write_text(GATE)
    (folder / "lib" / "fused.py").write_text("def scale(x, gate):\n    return x * gate\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "lib")
    git(folder, "commit", "--quiet", "-m", "Gates")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "lib" / "gate.py").write_text("broken")
    git(folder, "commit", "--quiet", "-am", "Break them")
    return Repository(folder.as_uri(), commit, "MIT")


Compare = Callable[..., Comparison]


@pytest.fixture
def compare(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Make `se` and the made-up code, with a factor at its gates, the only comparison."""

    def put(factor: float = 1.0, commit: str = repository.commit) -> Comparison:
        source = Repository(repository.url, commit, "MIT")
        official = Official(source, "lib/gate.py", "lib", {"settings": {"FACTOR": factor}})
        comparison = Comparison("se", official, build, ("a note",))
        monkeypatch.setattr(implementations, "COMPARISONS", (comparison,))
        return comparison

    return put


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the program on `se` in the temporary folder; gives its exit code and what it printed."""

    def start(*arguments: str) -> tuple[int, str]:
        own = ["--sources", str(tmp_path / "sources"), "--out", str(tmp_path / "study" / "official.jsonl")]
        code = program.main(["--blocks", "se", *SMALL, *own, *arguments])
        return code, capsys.readouterr().out

    return start


Run = Callable[..., tuple[int, str]]


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "study" / "official.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_agrees_is_timed_and_recorded(compare: Compare, run: Run, tmp_path: Path) -> None:
    comparison = compare()
    code, printed = run()
    assert code == 0
    _, infer, train, total = printed.splitlines()
    assert total == "2 cases: 2 ok"
    for line, mode in ((infer, "infer"), (train, "train")):
        assert line.split()[:3] == ["se", mode, "8"]
        assert f"someone/gates@{comparison.official.label[14:21]}:lib/gate.py" in line
        assert " ms" in line and "error" in line
    first, second = lines(tmp_path)
    assert (first["mode"], second["mode"]) == ("infer", "train")
    assert first["ratio_low"] <= first["ratio"] <= first["ratio_high"]
    assert first["rounds"] == len(first["ours_cpu_ms_samples"]) == len(first["official_wall_ms_samples"]) >= 6
    assert first["ceiling_share"] > 0 and "ceiling_share" not in second
    assert second["error"] <= 1e-4 and second["error_gradient"] <= 1e-4
    assert {"torch", "cpu", "threads", "env_hash", "licence", "notes"} <= first.keys()


def test_what_does_not_agree_gets_no_time(compare: Compare, run: Run, tmp_path: Path) -> None:
    compare(factor=1.001)
    code, printed = run("--modes", "infer")
    assert code == 1
    line, total = printed.splitlines()[1:]
    assert total == "1 case: 1 disagrees"
    assert "DISAGREES: error" in line and " ms" not in line
    (record,) = lines(tmp_path)
    assert record["error"] > 1e-4 and "ratio" not in record


def test_only_compared_where_that_is_asked(compare: Compare, run: Run, tmp_path: Path) -> None:
    compare()
    code, printed = run("--check")
    assert code == 0 and "error" in printed and " ms" not in printed
    assert not (tmp_path / "study").exists()


def test_code_that_cannot_be_had_stops_no_other(
    compare: Compare, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = compare()
    bad = compare(commit="0" * 40)
    monkeypatch.setattr(implementations, "COMPARISONS", (bad, good))
    code, printed = run("--modes", "infer")
    assert code == 1
    missing, measured, total, advice = printed.splitlines()[1:]
    assert "MISSING: " in missing and " ms" in measured
    assert total == "2 cases: 1 missing, 1 ok" and "insteadOf" in advice


def test_a_killed_run_goes_on(
    compare: Compare, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare()
    timed = contest.Contest.times
    calls = 0

    def killed(*arguments: Any, **options: Any) -> contest.Times:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return timed(*arguments, **options)

    monkeypatch.setattr(contest.Contest, "times", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [line["mode"] for line in lines(tmp_path)] == ["infer"]
    code, printed = run()
    assert code == 0 and calls == 3
    infer, train = printed.splitlines()[-3:-1]
    assert infer.endswith("(recorded)") and not train.endswith("(recorded)")
    assert [line["mode"] for line in lines(tmp_path)] == ["infer", "train"]


def test_measured_again_when_asked_or_changed(
    compare: Compare, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare()
    only = ("--modes", "infer")
    run(*only)
    assert "(recorded)" in run(*only)[1]
    assert "(recorded)" not in run(*only, "--force")[1]
    monkeypatch.setattr(program, "code_of", lambda *_: "other")
    assert "(recorded)" not in run(*only)[1]
    assert len(lines(tmp_path)) == 1


def test_what_was_measured_outlives_a_failure(
    compare: Compare, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare()
    run("--modes", "infer")
    monkeypatch.setattr(Official, "load", lambda *_: (_ for _ in ()).throw(SourceError("no network")))
    code, printed = run("--modes", "infer", "--force")
    assert code == 1 and "MISSING: no network" in printed
    (record,) = lines(tmp_path)
    assert record["status"] == "ok" and record["ratio"] > 0


@pytest.mark.parametrize("text", ["my notes\n", '{"torn', "[1]\n", '{"label": "se"}\n'])
def test_a_file_of_somebody_else_is_left_alone(
    text: str, compare: Compare, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    (tmp_path / "study").mkdir()
    file = tmp_path / "study" / "official.jsonl"
    file.write_text(text)
    assert program.main(["--blocks", "se", *SMALL, "--out", str(file)]) == 2
    assert f"{file}, line 1, is no comparison" in capsys.readouterr().err
    assert file.read_text() == text


def test_an_output_that_cannot_be_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for out in ("file/official.jsonl", "folder", "pipe"):
        assert program.main(["--blocks", "se", *SMALL, "--out", str(tmp_path / out)]) == 2
        printed = capsys.readouterr()
        assert len(printed.err.splitlines()) == 1 and not printed.out


def test_a_line_without_what_is_not_needed_is_told(compare: Compare, run: Run, tmp_path: Path) -> None:
    compare()
    run("--modes", "infer")
    (record,) = lines(tmp_path)
    short = {name: value for name, value in record.items() if name not in ("limit", "settled", "clock")}
    empty = dict.fromkeys(("ratio", "ratio_low", "ratio_high", "ours_cpu_ms", "gflops", "ceiling_share"))
    for line in (short, record | empty | {"limit": None}):
        (tmp_path / "study" / "official.jsonl").write_text(f"\n{json.dumps(line)}\n\n")
        code, printed = run("--modes", "infer")
        assert code == 0 and "(recorded)" in printed


@pytest.mark.parametrize("name", ["ratio", "ours_cpu_ms", "gflops", "ceiling_share"])
def test_text_in_place_of_a_number_is_told(
    name: str, compare: Compare, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare()
    run("--modes", "infer")
    (record,) = lines(tmp_path)
    file = tmp_path / "study" / "official.jsonl"
    file.write_text(json.dumps(record | {name: "1.0"}))
    assert program.main(["--blocks", "se", *SMALL, "--out", str(file)]) == 2
    assert f"line 1, is no comparison: {name}" in capsys.readouterr().err


def test_what_a_killed_writer_left_is_swept(compare: Compare, run: Run, tmp_path: Path) -> None:
    compare()
    (tmp_path / "study").mkdir()
    left = tmp_path / "study" / "official.jsonl.tmp-1-0123abcd"
    left.touch()
    os.utime(left, (0, 0))
    run("--modes", "infer")
    assert not left.exists()


def test_asked_to_end_it_says_so(tmp_path: Path) -> None:
    out = tmp_path / "official.jsonl"
    arguments = ["--blocks", "none", "--sizes", "4,8,16,24,32,48,64", "--budget", "5", "--out", str(out)]
    command = [sys.executable, "-u", "-m", "tests.bench.official", *arguments]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=-1, stderr=-1, text=True) as asked:
        assert asked.stdout and asked.stderr
        asked.stdout.readline()  # it has begun
        asked.terminate()
        assert asked.wait() == 130
        assert "interrupted" in asked.stderr.read().splitlines()[-1]


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    program_text = (
        "import sys; from pathlib import Path; from tests.bench.official.records import RecordFile\n"
        "path, name = sys.argv[1:]\n"
        "line = dict(official=None, mode='infer', dtype='float32', channels=1, height=1, width=1, cpu=None,\n"
        "            threads=1, torch='2', status='ok')\n"
        "for i in range(20): RecordFile(Path(path)).add(line | {'label': f'{name}-{i}'})"
    )
    path = tmp_path / "official.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", program_text, str(path), name], cwd=Path(__file__).parents[1])
        for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(path.read_text().splitlines()) == 40


def test_sources_that_are_not_whole_are_fetched_again(repository: Repository, tmp_path: Path) -> None:
    whole = repository.fetch(tmp_path)
    shutil.rmtree(whole / ".git")
    (whole / "lib" / "gate.py").unlink()
    assert repository.fetch(tmp_path) == whole
    assert (whole / "lib" / "gate.py").read_text() == GATE


def test_sources_that_were_changed_are_fetched_again(repository: Repository, tmp_path: Path) -> None:
    file = repository.fetch(tmp_path) / "lib" / "gate.py"
    file.write_text(f"{GATE}\nprint('changed')\n")
    repository.fetch(tmp_path)
    assert file.read_text() == GATE


def test_a_slow_block_is_flagged(compare: Compare, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "COMPARISONS", (replace(compare(), limit=1e-9),))
    assert "SLOWER THAN 1e-09" in run("--modes", "infer")[1]


def test_a_block_without_comparison_is_timed_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementations, "COMPARISONS", ())
    code, printed = run()
    assert code == 0
    assert len(printed.splitlines()) == 3
    (record,) = lines(tmp_path)
    assert record["official"] is None and record["gflops"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--blocks", "no-such-block"],
        ["--modes", "sleep"],
        ["--sizes", "large"],
        ["--channels", "8,16"],
        ["--threads", "0"],
        ["--threads", "9999999"],
        ["--budget", "-1"],
        ["--budget", "nan"],
        ["--sources", __file__],
        ["--no-such-option"],
    ],
    ids=lambda arguments: "".join(arguments).replace(__file__, "file"),
)
def test_wrong_usage_is_told_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_block_is_compared_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    compared = {each.block for each in implementations.COMPARISONS}
    assert not compared & implementations.UNCOMPARED.keys()
    assert compared | implementations.UNCOMPARED.keys() == set(blocks.names())
    assert program.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "none: not compared: it computes nothing" in printed
    assert "no train: " in printed


def test_modules_of_others_are_forgotten(repository: Repository, tmp_path: Path) -> None:
    official = Official(
        repository, "lib/gate.py", "lib", {"settings": {"FACTOR": 1}, "numpy.never": {"x": 1}}
    )
    sys.modules["fused"] = mine = ModuleType("fused")
    try:
        assert official.load(tmp_path / "sources").scale(2, 3) == 6
        assert sys.modules["fused"] is mine
    finally:
        del sys.modules["fused"]
    assert not {"gate", "settings", "numpy.never"} & sys.modules.keys()
    import numpy

    assert sys.modules["numpy"] is numpy


def test_fetched_once(repository: Repository, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    place = repository.fetch(sources)
    (place / "lib" / "mark").touch()
    assert Repository("file:///nowhere/someone/gates", repository.commit, "MIT").fetch(sources) == place
    assert (place / "lib" / "mark").exists()
    with pytest.raises(SourceError):
        Repository("file:///nowhere/someone/gates", "1" * 40, "MIT").fetch(sources)
    assert [path.name for path in sources.iterdir()] == [place.name]


def test_kinks_are_told_from_mistakes(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that is off in float32 alone is rounding; one that is off in float64 too is not."""
    comparison = compare()
    found = iter([[1e-6, 5e-3], [1e-15, 1e-14], [1e-6, 5e-3], [1e-15, 1e-5], [1e-2, 1e-6]])
    monkeypatch.setattr(contest.Contest, "differences", lambda self: next(found))
    pair = contest.prepare(comparison, tmp_path, channels=8, side=4, training=True)
    assert [pair.errors().agree for _ in range(3)] == [True, False, False]
    assert pair.ours.x.dtype == torch.float32


def test_weights_that_do_not_fit_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="other weights"):
        given(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    theirs = given(nn.Linear(4, 4, bias=False), ours := nn.Conv2d(4, 4, 1))
    x = torch.randn(4)
    torch.testing.assert_close(theirs(x), ours(x[:, None, None]).flatten())


@pytest.mark.parametrize("mode", program.MODES)
@pytest.mark.parametrize("comparison", INSTALLED, ids=lambda each: each.spec)
def test_blocks_agree_with_installed_packages(comparison: Comparison, mode: str, tmp_path: Path) -> None:
    with contest.on_cpu():
        pair = contest.prepare(comparison, tmp_path, channels=64, side=16, training=mode == "train")
        errors = pair.errors()
    assert errors.agree, errors
    assert (errors.gradient is not None) == (mode == "train")
