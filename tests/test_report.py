"""The report is one file that shows everything as text, loads nothing, and depends on the records alone."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import blocks
from ctxbench.cost import estimate
from ctxbench.errors import UsageError
from ctxbench.measure import Outcome
from ctxbench.presets import PRESETS
from ctxbench.record import Record
from ctxbench.reports import published
from ctxbench.reports.report import Report, tables_of
from ctxbench.runner import cost_columns
from ctxbench.store import Reading, RunStore
from ctxbench.tables import printable
from tests.factories import IDENTITY, failed_record, make_record

HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></table><b>bold</b>",
    "$\\frac{1}{0}$ and $x",
    '" onmouseover="alert(1)',
    "' & &amp; &lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left שלום",
    "]]> --> <!-- <![CDATA[",
    'id="x" xlink:href="#x" url(#x)',
]
FAMILIES = ("decomposition", "attention")
TEXTS = ("value", "aria-label")  # attributes that hold text of records


class Page(HTMLParser):
    """What a browser makes of a page: elements with attributes, and the text of each table cell and list item."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.items: list[str] = []
        self.drawn: list[str] = []
        self._open: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        kinds = {
            "td": self.cells,
            "th": self.cells,
            "li": self.items,
            "text": self.drawn,
            "small": self.cells,
        }
        if tag in kinds:
            kinds[tag].append("")
            self._open.append(kinds[tag])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "li", "text", "small"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1][-1] += data

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def write_run(folder: Path, records: list[Record]) -> Path:
    store = RunStore.create(folder)
    for number, record in enumerate(records):
        store.write(record.model_copy(update={"cell_id": f"{number:016x}"}))
    return folder


def measured(spec: str, side: int, **fields: Any) -> Record:
    cost = {
        "macs_counted": 10**6 * side,
        "macs_formula": 10**6 * side,
        "memory_predicted_bytes": side * 2**20,
    }
    size = {"height": side, "width": side, "spec": spec, "block": spec, "family": "attention"}
    return make_record(**(cost | size | fields))


def page_of(folder: Path) -> Page:
    """The page on a run, written beside it."""
    return Page(Report.of(Reading.of([folder])).write(folder.parent / "report").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on a run in which every text is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    records = []
    for number, text in enumerate(HOSTILE):
        records += [measured(text, side, family=FAMILIES[number % 2]) for side in (8, 16)]
        records.append(failed_record("error", f"{text}\tand a tab", spec="broken", block=text, family=text))
    run = write_run(folder / "run", records)
    (run / "records" / "<script>alert(2)<br>.json").write_text("{", encoding="utf-8")
    Report.of(Reading.of([run])).write(folder / "report")
    return folder / "report"


@pytest.fixture(scope="module")
def hostile_page(hostile: Path) -> Page:
    return Page((hostile / "index.html").read_text(encoding="utf-8"))


# Safe


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_errors_are_shown_as_text(hostile_page: Page, text: str) -> None:
    """Marks that turn the direction of reading are replaced, and a tab is a space."""
    shown = text.replace("\u202e", "\ufffd")
    assert hostile_page.cells.count(shown) >= 2, "the block's name, once in each table"
    assert f"error: {shown} and a tab" in hostile_page.cells


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_drawn_as_text(hostile_page: Page, text: str) -> None:
    assert printable(text) in [drawn.strip() for drawn in hostile_page.drawn]


def test_no_text_becomes_an_element(hostile_page: Page) -> None:
    assert not hostile_page.tags & {"iframe", "object", "embed", "base", "br", "img", "link"}
    tags = [tag for tag, _ in hostile_page.elements]
    assert [tags.count(tag) for tag in ("script", "form")] == [2, 1], "ours"
    assert tags.count("style") == 1 + tags.count("svg")
    for _, attributes in hostile_page.elements:
        assert not [name for name in attributes if name.startswith("on")]


def test_a_damaged_files_hostile_name_is_text_too(hostile_page: Page) -> None:
    assert any("<script>alert(2)<br>.json" in item for item in hostile_page.items)


def test_the_page_loads_nothing(hostile: Path, hostile_page: Page) -> None:
    assert not hostile_page.tags & {"link", "img", "image"}
    for tag, attributes in hostile_page.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    source = (hostile / "index.html").read_text(encoding="utf-8")
    styles = " ".join(re.findall(r"<style.*?</style>|style=\"[^\"]*\"", source, re.DOTALL))
    assert "@import" not in styles
    assert not re.search(r"url\((?!['\"]?#)", styles)


def test_ids_are_unique_and_what_refers_to_them_finds_them(hostile_page: Page) -> None:
    ids = [attributes["id"] for _, attributes in hostile_page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    for _, attributes in hostile_page.elements:
        values = " ".join(value for name, value in attributes.items() if value and name not in TEXTS)
        wanted = re.findall(r"url\(#([^)]+)\)", values)
        link = attributes.get("xlink:href")
        if link:
            wanted.append(link.removeprefix("#"))
        assert set(wanted) <= set(ids)


def test_markdown_has_the_same_tables_and_no_markup_of_theirs(hostile: Path) -> None:
    text = (hostile / "report.md").read_text(encoding="utf-8")
    assert "<" not in text
    assert text.count("\n### ") == 4, "two resolutions, both beside each other, and who is cheapest where"


@pytest.mark.parametrize("dtype", ["../../evil", "nul\0"], ids=ascii)
def test_no_record_chooses_where_a_file_is_written_or_keeps_the_report_from_the_others(
    tmp_path: Path, dtype: str
) -> None:
    good = [measured("self-attn", side) for side in (8, 16)]
    run = write_run(tmp_path / "deep" / "run", good)
    for side in (8, 16):
        path = run / "records" / f"{side:016x}.json"
        text = measured("evil", side, cell_id=path.stem).to_json()
        path.write_text(text.replace('"float32"', json.dumps(dtype)))
    page = page_of(run)
    assert "self-attn" in page.cells
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"run", "report"}


@pytest.mark.parametrize(
    "change",
    [
        {"macs_fvcore": 1, "fvcore_missed_json": "no JSON"},
        {"macs_fvcore": 1, "fvcore_missed_json": None},
        {"macs_fvcore": 1, "fvcore_missed_json": "1"},
        {"macs_formula": None},
        {"latency_ms_ci_low": None, "latency_ms_ci_high": None},
        {"latency_cpu_ms_median": None, "latency_ref_ratio": None},
        {"height": 0},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_does_not_keep_the_report_from_the_others(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """It may be shown or be set aside; a page there must be."""
    run = write_run(tmp_path / "run", [measured("self-attn", 8)])
    odd = measured("odd", 8, cell_id="f" * 16)
    (run / "records" / f"{odd.cell_id}.json").write_text(json.dumps(odd.model_dump() | change))
    report = Report.of(Reading.of([run]))
    assert "self-attn" in Page(report.write(tmp_path).read_text(encoding="utf-8")).cells


# Complete


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two blocks over two resolutions, with a failure and a damaged file."""
    records = [measured(spec, side) for spec in ("self-attn", "mine") for side in (8, 16)]
    records.append(failed_record("oom", "needs 9.0 GiB", spec="hungry", height=16, width=16))
    run = write_run(tmp_path_factory.mktemp("report") / "run", records)
    (run / "records" / "deadbeefdeadbeef.json").write_text("{")
    return run


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return page_of(folder)


@pytest.fixture
def out(folder: Path, page: Page) -> Path:
    """Where the page, the Markdown and the figures were written."""
    return folder.parent / "report"


def test_the_page_has_tables_figures_and_what_was_run_where(page: Page) -> None:
    tables = [tag for tag, _ in page.elements].count("table")
    assert tables == 5, "two resolutions, who is cheapest, where each overtakes, and published numbers"
    assert [tag for tag, _ in page.elements].count("svg") >= 3
    assert any("5 cells (4 ok, 1 oom)" in item for item in page.items)
    for part in ("a processor", "torch 2.13.0", "threads 1"):
        assert any(part in item for item in page.items)
    assert "oom: needs 9.0 GiB" in page.cells


def test_damaged_files_are_counted_and_named(page: Page, out: Path) -> None:
    (line,) = [item for item in page.items if "unreadable" in item]
    assert line.startswith("unreadable: 1 file")
    assert "deadbeefdeadbeef.json" in line
    assert "deadbeefdeadbeef.json" in (out / "report.md").read_text(encoding="utf-8")


def test_every_figure_is_written_as_png_and_svg_and_named_in_the_markdown(out: Path) -> None:
    names = {path.stem for path in (out / "figures").iterdir()}
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert names >= {
        "macs-infer-b1-c16-float32",
        "memory-infer-b1-c16-float32",
        "latency-infer-b1-c16-float32-012345",
    }
    for path in (out / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    for path in (out / "figures").glob("*.svg"):
        assert "<svg" in path.read_text(encoding="utf-8")
    named = re.findall(r"\(figures/(.*?)\.png\)", (out / "report.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(names)


def test_the_same_records_give_the_same_bytes(folder: Path, out: Path, tmp_path: Path) -> None:
    Report.of(Reading.of([folder])).write(tmp_path)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) > 4
    for file in sorted(files):
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes(), file


def test_an_empty_run_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", []))
    assert any("no records: this run is empty" in item for item in page.items)
    assert "table" not in page.tags
    assert "this run is empty" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_a_run_in_which_everything_failed_has_tables_and_no_figures(tmp_path: Path) -> None:
    records = [failed_record("oom", "needs 9.0 GiB", height=side, width=side) for side in (8, 16)]
    page = page_of(write_run(tmp_path / "run", records))
    assert page.cells.count("oom: needs 9.0 GiB") == 2
    assert "svg" not in page.tags


def test_several_runs_make_one_report_and_one_named_twice_counts_once(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [measured("other", 8, env_hash="ba9876543210", torch="99.0")])
    report = Report.of(Reading.of([folder, other, folder]))
    assert len(report.rows) == 6
    assert sum("torch" in line for line in report.summary) == 2, "one line per environment"


# Ratios


def test_ratios_refer_to_self_attention_unless_another_block_is_named(folder: Path) -> None:
    for baseline in ("self-attn", "mine"):
        report = Report.of(Reading.of([folder]), None if baseline == "self-attn" else baseline)
        for table in report.costs:
            assert any(title.endswith(f" / {baseline}") for title in table.header)


def test_a_baseline_that_no_record_has_is_answered_with_those_there_are(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no record of 'nine' .* there are: .*mine"):
        Report.of(Reading.of([folder]), "nine")


# Mistakes


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        Report.of(Reading.of([tmp_path]))


def test_a_file_in_the_reports_place_is_the_users_mistake(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot write") as error:
        Report.of(Reading.of([folder])).write(tmp_path / "file")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


# Published beside measured


@pytest.fixture(scope="module")
def paper_rows() -> Iterator[list[dict[str, Any]]]:
    """Estimates of the paper's table, as records."""
    rows = []
    for cell in dataclasses.replace(PRESETS["paper"], estimated=True).cells():
        input_ = {
            name: getattr(cell, name) for name in ("batch", "channels", "height", "width", "dtype", "mode")
        }
        about = {"block": cell.block, "spec": cell.label, "cell_id": cell.id, "estimated": True}
        fields = IDENTITY | input_ | about | cost_columns(estimate(cell)) | Outcome("ok").columns
        rows.append(Record(**fields).row)
    yield rows
    assert torch.empty(0).device.type == "cpu"


TABLE_3 = [
    row
    for row in published.load("paper")
    if row["table"] == "Table 3"
    and row["metric"] in published.PROFILE_METRICS
    and row["block"] in blocks.names()
]


def test_the_published_table_comes_first_and_has_every_printed_number(
    paper_rows: list[dict[str, Any]],
) -> None:
    table = tables_of(paper_rows)[0]
    assert table.title == "Published numbers beside those found here"
    shown = {(row[1], row[2], row[3]) for row in table.text}
    for printed in TABLE_3:
        digits = len(printed["value"].partition(".")[2])
        value = f"{float(printed['value']):,.{digits}f}"
        assert (printed["spec"], published.TITLES[printed["metric"]], value) in shown
    assert len(table.rows) == len(TABLE_3) == 7 * 4


def test_every_number_that_differs_is_explained(paper_rows: list[dict[str, Any]]) -> None:
    table = tables_of(paper_rows)[0]
    verdicts = [row[-1] for row in table.text]
    assert set(verdicts) <= {"reproduced", "not reproduced"}
    assert verdicts.count("reproduced") >= 17
    notes = " ".join(table.notes)
    assert "ICLR 2021" in notes
    for row in table.text:
        if row[-1] != "reproduced":
            assert f"{row[1]}, {row[2]}: {row[5]}" in notes


def test_other_inputs_have_no_published_table(folder: Path) -> None:
    assert "Published" not in Report.of(Reading.of([folder])).tables[0].title
