"""Sites, badges, and the leaderboard that is committed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ctxbench.errors import UsageError
from ctxbench.record import Record
from ctxbench.reports.badges import write_badges
from ctxbench.reports.report import Report
from ctxbench.reports.site import across_machines, folder_names, write_site
from ctxbench.store import Reading, RunStore
from ctxbench.tables import markdown
from tests.factories import make_record

RESULTS = Path(__file__).parents[1] / "results"
ELSEWHERE = {"env_hash": "ba9876543210", "device_name": "another"}


def profiled(spec: str, side: int, milliseconds: float, **fields: Any) -> Record:
    cost = {
        "macs_counted": int(1e9 * milliseconds),
        "macs_formula": int(1e9 * milliseconds),
        "memory_predicted_bytes": int(2**20 * milliseconds),
        "latency_ms_median": milliseconds,
        "latency_ms_ci_low": 0.99 * milliseconds,
        "latency_ms_ci_high": 1.01 * milliseconds,
    }
    about = {"spec": spec, "block": spec, "height": side, "width": side, "family": "attention"}
    return make_record(**(cost | about | fields))


def write_run(folder: Path, found: list[Record]) -> Path:
    store = RunStore.create(folder)
    for number, record in enumerate(found):
        store.write(record.model_copy(update={"cell_id": f"{number:016x}"}))
    return folder


def both(folder: Path) -> Reading:
    """Two machines: on the second self-attention is twice as slow, and the other block three times."""
    blocks = (("self-attn", 4.0, 2), ("ham-nmf", 1.0, 3))
    one = [profiled(spec, side, ms * side / 8) for spec, ms, _ in blocks for side in (8, 16)]
    two = [profiled(spec, 8, ms * factor, **ELSEWHERE) for spec, ms, factor in blocks]
    return Reading.of([write_run(folder / "one", one), write_run(folder / "two", two)])


# The committed leaderboard


def test_the_committed_leaderboard_is_what_the_committed_runs_give() -> None:
    runs = sorted(path.parent for path in (RESULTS / "runs").glob("*/records"))
    made = Report.of(Reading.of(runs)).markdown()
    assert made == (RESULTS / "leaderboard.md").read_text(encoding="utf-8"), "make leaderboards"


def test_the_committed_site_has_a_page_for_each_committed_run() -> None:
    runs = {path.parent.name for path in (RESULTS / "runs").glob("*/records")}
    pages = {path.parent.name for path in (RESULTS / "leaderboards").glob("*/index.html")}
    assert pages == runs


@pytest.mark.parametrize("name", ["README.md", "results/leaderboard.md"])
def test_every_file_that_the_readme_shows_is_there(name: str) -> None:
    path = RESULTS.parent / name
    places = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [place for place in places if not (path.parent / place).exists()] == []


# Sites


def test_a_site_has_an_index_published_numbers_and_a_folder_for_each_run(tmp_path: Path) -> None:
    index = write_site(both(tmp_path), tmp_path / "site")
    assert index == tmp_path / "site" / "index.html"
    assert {path.name for path in index.parent.iterdir()} == {"index.html", "published.html", "one", "two"}
    for name in ("one", "two"):
        assert f'href="{name}/index.html"' in index.read_text(encoding="utf-8")
        assert 'href="../index.html"' in (index.parent / name / "index.html").read_text(encoding="utf-8")


def test_the_same_runs_give_the_same_site(tmp_path: Path) -> None:
    reading = both(tmp_path)
    one, two = (write_site(reading, tmp_path / name).parent for name in ("first", "second"))
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(files) > 6
    assert [path for path in files if (one / path).read_bytes() != (two / path).read_bytes()] == []


def test_machines_are_compared_by_ratios_where_both_measured(tmp_path: Path) -> None:
    report = Report.of(both(tmp_path))
    (table,) = across_machines(report.blocks, "self-attn")
    assert "8x8" in table.title
    text = markdown(table)
    assert "| ham-nmf | 1 ms (0.25) | 3 ms (0.375) |" in text
    assert "| self-attn | 4 ms (1) | 8 ms (1) |" in text


def test_one_machine_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", [profiled("a", 8, 1.0), profiled("b", 8, 2.0)])
    assert across_machines(Report.of(Reading.of([run])).blocks, None) == []


def test_a_baseline_that_a_run_lacks_is_left_out_there(tmp_path: Path) -> None:
    reading = Reading.of([write_run(tmp_path / "one", [profiled("a", 8, 1.0), profiled("b", 8, 2.0)])])
    page = write_site(reading, tmp_path / "site", "a").parent / "one" / "index.html"
    assert "latency / a" in page.read_text(encoding="utf-8")


def test_names_of_runs_become_names_of_folders() -> None:
    assert folder_names(["Run 1", "run-1", "../../etc", "<script>", "", "run-1"]) == [
        "run-1",
        "run-1-2",
        "etc",
        "script",
        "run",
        "run-1-3",
    ]


def test_an_empty_run_has_a_page_in_the_site(tmp_path: Path) -> None:
    index = write_site(Reading.of([write_run(tmp_path / "empty", [])]), tmp_path / "site")
    assert "no records" in (index.parent / "empty" / "index.html").read_text(encoding="utf-8")


def test_a_file_in_the_sites_place_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot write"):
        write_site(both(tmp_path), tmp_path / "file")


# Badges


def test_badges_say_what_a_block_costs_as_a_multiple(tmp_path: Path) -> None:
    rows = Report.of(both(tmp_path)).blocks
    text = write_badges(rows, "self-attn", tmp_path / "out").read_text(encoding="utf-8")
    assert "| ham-nmf | ![0.25x self-attn](badges/ham-nmf-macs.svg) |" in text
    assert "at 16x16" in text
    for path in (tmp_path / "out" / "badges").iterdir():
        image = ElementTree.parse(path).getroot()
        about = image.attrib["aria-label"]
        assert about.startswith("ham-nmf: ")
        assert " 0.25x self-attn, 16x16, a processor, 1 thread" in about
        assert path.name in text


def test_hostile_names_make_harmless_badges(tmp_path: Path) -> None:
    hostile = '</text><script>x</script>"../../a|b'
    run = write_run(tmp_path / "run", [profiled("self-attn", 8, 2.0), profiled(hostile, 8, 1.0)])
    out = write_badges(Report.of(Reading.of([run])).blocks, "self-attn", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
    assert "<script" not in out.read_text(encoding="utf-8")
    for path in (tmp_path / "out" / "badges").iterdir():
        ElementTree.parse(path)


def test_without_a_baseline_there_are_no_badges(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", [profiled("a", 8, 1.0), profiled("b", 8, 2.0)])
    with pytest.raises(UsageError, match="--baseline"):
        write_badges(Report.of(Reading.of([run])).blocks, None, tmp_path)
