"""The study of attention against decompositions, on records made up for it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ctxbench.cli import main
from ctxbench.record import Record
from ctxbench.reports.contests import Interval
from ctxbench.reports.inputs import labelled
from ctxbench.reports.official import OfficialRatio
from ctxbench.reports.report import Report
from ctxbench.reports.study import FUSED, NAIVE, Study, printed, quotient
from ctxbench.store import RunStore
from tests.factories import make_record

SIDES = (16, 32, 64, 128)


def costs(spec: str, family: str, time: float, memory: float, power: int) -> list[Record]:
    """Records whose costs are `time` ms and `memory` MiB at 16x16, and rise with a power of the pixels."""
    found = []
    for side in SIDES:
        for mode in ("infer", "train"):
            rise = (side / 16) ** (2 * power)
            milliseconds = time * rise
            cost: dict[str, Any] = {
                "latency_ms_median": milliseconds,
                "latency_ms_ci_low": milliseconds * 0.99,
                "latency_ms_ci_high": milliseconds * 1.01,
                "latency_cpu_ms_median": milliseconds,
                "memory_predicted_bytes": int(memory * 2**20 * rise),
                "reference_gflops": 100.0,
                "device_name": "A CPU",
            }
            size = {"height": side, "width": side, "channels": 512, "batch": 1, "mode": mode}
            name = {"spec": spec, "block": spec.partition("[")[0], "family": family}
            cell = hashlib.sha256(f"{spec} {side} {mode}".encode()).hexdigest()[:16]
            found.append(make_record(cell_id=cell, **name, **size, **cost))
    return found


@pytest.fixture
def records() -> list[Record]:
    return [
        *costs(NAIVE, "attention", 1.0, 1.0, 2),
        *costs(FUSED, "attention", 0.5, 0.5, 2),
        *costs("ham-nmf", "decomposition", 8.0, 2.0, 1),
    ]


@pytest.fixture
def study(records: list[Record]) -> Study:
    rows = labelled([record.row for record in records])
    return Study(Report(rows, baseline=NAIVE))


def write_run(folder: Path, records: list[Record]) -> Path:
    store = RunStore.create(folder)
    for record in records:
        store.write(record)
    return folder


def test_quotients_are_as_wide_as_both_intervals_allow() -> None:
    found = quotient(Interval(9, 10, 11), Interval(4, 5, 6))
    assert (found.low, found.middle, found.high) == (9 / 6, 2, 11 / 4)


def test_the_papers_ratios_are_those_it_is_known_by() -> None:
    found = {(it.mode, it.decomposition.spec): round(it.ratio, 1) for it in printed()}
    assert found["infer", "ham-nmf"] == 10.7
    assert found["train", "ham-nmf"] == 15.5


def test_crossovers_and_shares_follow_from_the_costs(study: Study) -> None:
    text = study.markdown()
    # 8 n against n^2 is equal at 8 times 256 pixels, against n^2 / 2 at 16 times.
    assert "from about 45x45 on" in text
    assert "from between 32x32 and 128x128 on (alike at 64x64)" in text
    assert "at 128x128 `ham-nmf` takes 0.25 (0.245 - 0.255) of the time of `self-attn[impl=sdpa]`" in text
    assert "the fastest attention there, and is faster than that from" in text
    assert (
        "* At the largest resolution, 128x128, `ham-nmf` takes 0.25 times as long as the fastest attention: it is "
        "faster in 2 of 2 settings and slower in 0." in text
    )
    assert "* At the smallest resolution, 16x16, `ham-nmf` takes 16 times as long" in text
    assert "| 0.125 (0.123 - 0.128) at 128x128 | 0.25 (0.245 - 0.255) at 128x128 |" in text
    assert (
        "| inference | ham-nmf | float32, A CPU, 1 thread, torch 2.13.0 | 10.7 | 8 (7.84 - 8.16) | 4 (3.92 - 4.08) |"
        in text
    )


def test_times_that_did_not_settle_are_marked(records: list[Record]) -> None:
    rows = labelled([record.row | {"converged": record.row["spec"] != FUSED} for record in records])
    text = Study(Report(rows, baseline=NAIVE)).markdown()
    assert "* 8 of 24 times did not settle; ratios of such a time carry a †" in text
    assert "takes 0.25† (0.245 - 0.255) of the time of `self-attn[impl=sdpa]`" in text
    assert "| 10.7 | 8 (7.84 - 8.16) | 4† (3.92 - 4.08) |" in text
    assert "| self-attn\\[impl=sdpa\\] | 2.00 | 2.00† |" in text.replace("| – ", "")
    assert "| self-attn\\[impl=sdpa\\] | **0.5†** | **8†** | 128† | 2,048† |" in text


def test_the_gradient_through_the_iterations_has_its_price(records: list[Record]) -> None:
    records += costs("ham-nmf[gradient=bptt]", "decomposition", 20.0, 9.0, 1)
    text = Study(Report(labelled([record.row for record in records]), baseline=NAIVE)).markdown()
    assert "with it `ham-nmf` takes 2.5 (2.45 - 2.55) times as long at 128x128 (float32, A CPU" in text


def test_times_of_other_rounds_are_marked(records: list[Record]) -> None:
    rows = [
        record.row | {"rounds_id": "a" * 12 if record.row["spec"] == FUSED else None} for record in records
    ]
    text = Study(Report(labelled(rows), baseline=NAIVE)).markdown()
    assert "* 8 of 16 pairs of a decomposition and attention were not called in the same rounds" in text
    assert "takes 0.25‡ of the time of `self-attn[impl=sdpa]`" in text, "no interval speaks of two sessions"
    assert "| 10.7 | 8 (7.84 - 8.16) | 4‡ |" in text


def test_the_code_that_was_measured_is_named(records: list[Record]) -> None:
    code = [("abc", False), ("abc", False), ("abc", True)] + [(None, None)] * (len(records) - 3)
    rows = [
        record.row | {"git_commit": commit, "git_dirty": dirty}
        for record, (commit, dirty) in zip(records, code, strict=True)
    ]
    text = Study(Report(labelled(rows), baseline=NAIVE)).markdown()
    assert "* code: commit abc (2), commit abc with changes (1)" in text


def test_ratios_of_memory_have_no_interval(study: Study) -> None:
    assert (
        "`ham-nmf` has 0.0625 of the predicted memory of `self-attn[impl=sdpa]`, the leanest."
        in study.markdown()
    )


def test_estimates_are_no_measurements(records: list[Record]) -> None:
    rows = labelled([record.row | {"estimated": record.row["height"] == 128} for record in records])
    text = Study(Report(rows, baseline=NAIVE)).markdown()
    assert "at 64x64 `ham-nmf` takes" in text and "Nothing was measured beyond 64x64." in text
    assert "How many times longer" not in text


def test_inputs_of_as_many_pixels_are_one(records: list[Record]) -> None:
    flat = [record.row | {"height": 64, "width": 256} for record in records if record.row["height"] == 128]
    text = Study(Report(labelled([*(it.row for it in records), *flat]), baseline=NAIVE)).markdown()
    assert "| ham-nmf | 1.00 | 1.00 |" in text.replace("| – ", "")


def test_growth_is_the_power_of_the_pixels(study: Study) -> None:
    text = study.markdown()
    assert "| ham-nmf | 1.00 | 1.00 |" in text.replace("| – ", "")
    assert "| self-attn | 2.00 | 2.00 |" in text.replace("| – ", "")


def test_what_no_record_says_is_named(study: Study) -> None:
    gaps = " ".join(study.gaps)
    assert "No record comes from a GPU. The 6 times that the paper prints" in gaps
    assert "Precisions: float32; no others." in gaps
    assert "Nothing was measured beyond 128x128." in gaps


CONTEST: dict[str, Any] = {
    **{"label": "ham-nmf", "official": "x/y@abc:f.py", "mode": "infer", "dtype": "float32"},
    **{"channels": 512, "height": 64, "width": 64, "cpu": "A CPU", "threads": 1, "torch": "2.15.0+x"},
    **{"ratio": 0.9, "ratio_low": 0.89, "ratio_high": 0.91, "agreement": "error 1e-7"},
}


def test_comparisons_with_official_code_have_a_table(study: Study) -> None:
    about = {name: value for name, value in CONTEST.items() if not name.startswith("ratio")}
    disagreeing = {"status": "disagrees", "mode": "train", "notes": ["on tokens"]}
    found = [OfficialRatio(**CONTEST), OfficialRatio(**(about | disagreeing))]
    text = Study(study.report, found).markdown()
    assert (
        "* 2 comparisons: 1 agree, 1 disagree. 0 ratios did not settle within 1 % in the time given." in text
    )
    assert "Code:" not in text
    assert "| ham-nmf | float32 | 1x512x64x64 | training | disagrees |" in text
    assert "* `ham-nmf`: on tokens." in text
    assert text.count("| ham-nmf | float32 | 1x512x64x64 | inference | 0.900 (0.890 - 0.910) |") == 1


@pytest.mark.parametrize(
    ("ratio", "low", "said"),
    [
        (1.02, 0.98, "1 of 1 ratios are as meant, 0 are above that by less than their interval, 0 by more."),
        (1.03, 1.01, "0 of 1 ratios are as meant, 1 are above that by less than their interval, 0 by more."),
        (
            *(1.05, 1.03),
            "0 of 1 ratios are as meant, 0 are above that by less than their interval, 1 by more: "
            "`ham-nmf` (infer, 64x64, float32).",
        ),
    ],
)
def test_ratios_are_held_against_their_limit(ratio: float, low: float, said: str, study: Study) -> None:
    contest = CONTEST | {"ratio": ratio, "ratio_low": low, "ratio_high": 1.1, "limit": 1.02}
    assert f"* {said}" in Study(study.report, [OfficialRatio(**contest)]).markdown()


def test_what_was_compared_in_one_mode_alone_is_named(study: Study) -> None:
    other = CONTEST | {"label": "ssm"}
    found = [OfficialRatio(**it) for it in (CONTEST, CONTEST | {"mode": "train"}, other)]
    machine = "A CPU, 1 thread, torch 2.15.0"
    assert (
        f"* Not compared with official code on {machine}: `ssm` (float32, train, 1x512x64x64)."
        in Study(study.report, found).markdown()
    )
    assert "Not compared" not in Study(study.report, found[:2]).markdown()


def test_the_speed_of_every_block_is_told(study: Study) -> None:
    speed = {"gflops": 68.25, "ceiling_share": 0.706, "git_commit": "abc", "git_dirty": False}
    alone = CONTEST | speed | {"label": "none", "official": None, "height": 128, "width": 128}
    idle = CONTEST | speed | {"label": "se", "ceiling_share": 0.002}
    text = Study(study.report, [OfficialRatio(**it) for it in (CONTEST | speed, alone, idle)]).markdown()
    assert "| block | 1x512x64x64 | 1x512x128x128 |" in text
    assert "in the time given. Code: commit abc (2)." in text
    assert "| se, float32 |" not in text, "it multiplies next to nothing"
    assert "| ham-nmf, float32 | 68.2 (71 %) | – |" in text and "| none, float32 | – | 68.2 (71 %) |" in text


def test_notes_are_given_once_or_for_each_precision_that_has_its_own(study: Study) -> None:
    def noted(**changes: Any) -> OfficialRatio:
        return OfficialRatio(**(CONTEST | {"notes": ["on tokens"]} | changes))

    same = [noted(), noted(dtype="bfloat16"), noted(cpu="another")]
    text = Study(study.report, same).markdown()
    assert text.count("* `ham-nmf`: on tokens.") == 1
    assert "| ham-nmf | bfloat16 / float32 | 1x512x64x64 |" in text
    text = Study(study.report, [*same, noted(dtype="bfloat16", notes=["in float32"])]).markdown()
    assert "* `ham-nmf` (bfloat16 / float32): in float32." in text


def test_the_command_writes_the_text_and_its_figures(tmp_path: Path, records: list[Record]) -> None:
    run = write_run(tmp_path / "run", records)
    out = tmp_path / "studies"
    out.mkdir()
    (out / "official.jsonl").write_text(json.dumps(CONTEST) + "\n")
    result = CliRunner().invoke(main, ["study", str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = (out / "attention-vs-decomposition.md").read_text()
    figures = sorted(path.name for path in (out / "attention-vs-decomposition").glob("*.png"))
    assert figures
    assert all(f"(attention-vs-decomposition/{name})" in text for name in figures)
    assert not result.stderr


def test_a_study_without_comparisons_says_so(tmp_path: Path, records: list[Record]) -> None:
    run = write_run(tmp_path / "run", records)
    result = CliRunner().invoke(main, ["study", str(run), "--out", str(tmp_path / "studies")])
    assert result.exit_code == 0
    assert "no comparisons with official implementations" in result.stderr


WRONG = (
    *({"ratio": value} for value in ("x", -3, 0, math.nan, 2.0, None)),
    *({"ratio_low": -math.inf}, {"status": "disagrees"}, {"status": "?"}, {"mode": "xx"}),
    *({"height": -5}, {"threads": 0}, {"channels": 0}),
)


@pytest.mark.parametrize(
    "official", ["{", "[1]", '{"ratio": 1}', *(json.dumps(CONTEST | wrong) for wrong in WRONG)]
)
def test_a_file_that_holds_no_comparisons_is_refused_in_a_line(
    tmp_path: Path, records: list[Record], official: str
) -> None:
    run = write_run(tmp_path / "run", records)
    (tmp_path / "official.jsonl").write_text(f"{json.dumps(CONTEST)}\n\n{official}\n")
    result = CliRunner().invoke(main, ["study", str(run), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "official.jsonl, line 3," in result.stderr


def test_runs_without_a_contest_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", costs("ham-nmf", "decomposition", 1.0, 1.0, 1))
    result = CliRunner().invoke(main, ["study", str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no record of both" in result.stderr
    assert not (tmp_path / "out").exists()
