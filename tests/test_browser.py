"""The page in a real browser: it sorts, filters, opens, downloads, fits, and asks no host for anything."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from ctxbench.record import Record
from ctxbench.reports.report import Report
from ctxbench.reports.site import write_site
from ctxbench.store import Reading, RunStore
from tests.factories import failed_record, make_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]
HOSTILE = [
    "<script>document.title='taken'</script>",
    "</script><img src=x onerror=\"document.title='taken'\">",
    '" onmouseover="alert(1)',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "\u202eright to left שלום",
    "{{ 7 * 7 }}",
    "a" * 10_000,
]
WIDTHS = {"wide": 1400, "phone": 360}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CTXBENCH_NEEDS_BROWSER"):
            pytest.fail("there is no Chromium, and CTXBENCH_NEEDS_BROWSER is set")
        pytest.skip("there is no Chromium here; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


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
    return make_record(**(cost | about | {"options_json": '{"rank": 8}'} | fields))


def trained(spec: str, seed: int, miou: float, **fields: Any) -> Record:
    about: dict[str, Any] = {
        **{
            "kind": "task",
            "task": "voc",
            "preset": "paper",
            "model": "hamnet-r50",
            "dataset": "voc",
            "spec": spec,
        },
        **{
            "train_iterations": 100,
            "protocol_json": '{"note": "a protocol"}',
            "scoring": "single",
            "metric": "miou",
        },
        **{"block": spec, "seed": seed, "miou": miou, "mode": "train", "train_cpu_s": 10.0 * seed + 1},
    }
    return make_record(**(about | fields))


def records() -> list[Record]:
    """Three blocks at three resolutions in both modes, estimates beyond, failures, trainings, and attacks."""
    found = []
    for mode in ("infer", "train"):
        for side in (8, 16, 32):
            found += [profiled("self-attn", side, side**4 / 4096, mode=mode)]
            found += [profiled("ham-nmf", side, side**2 / 64, mode=mode)]
            found += [profiled("a2", side, side**2 / 50, mode=mode)]
    found += [failed_record("oom", "out of memory", spec="self-attn", block="self-attn", height=64, width=64)]
    found += [profiled("ham-nmf", 64, 64.0)]
    table_3 = {"batch": 1, "channels": 512, "height": 128, "width": 128}
    found += [profiled(spec, 128, 5.0, **table_3) for spec in ("self-attn", "ham-nmf")]
    for seed in (0, 1):
        found += [trained("ham-nmf", seed, 0.78 + seed / 100), trained("self-attn", seed, 0.7 + seed / 100)]
    for text in HOSTILE:
        found.append(
            profiled(text[:900], 8, 9.0, block=text[:900], family=text[:900], device_name="a processor")
        )
        found.append(failed_record("error", text, spec="broken", block="broken", height=16, width=16))
    return found


def write_run(folder: Path, found: list[Record]) -> Path:
    store = RunStore.create(folder)
    for number, record in enumerate(found):
        store.write(record.model_copy(update={"cell_id": f"{number:016x}"}))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    return Report.of(Reading.of([write_run(folder / "run", records())])).write(folder / "report")


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, opened; at the end nothing was wrong and nothing was asked for."""
    yield from opened(browser, report, width=1400)


def opened(browser: Browser, path: Path, **options: Any) -> Iterator[Page]:
    wrong: list[str] = []
    size = {"width": options.pop("width"), "height": 900}
    context = browser.new_context(viewport=size, accept_downloads=True, **options)  # type: ignore[arg-type]
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on(
        "request", lambda it: None if it.url.startswith(("file:", "data:", "blob:")) else wrong.append(it.url)
    )
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("#tools:visible")
    yield page
    context.close()
    assert wrong == []


def first_cells(page: Page, title: str) -> list[str]:
    """The first cell of each visible row of the first visible table with such a title."""
    board = page.locator(".board:visible", has=page.locator("h3", has_text=title)).first
    return [text.strip() for text in board.locator("tbody tr:not(.detail) > th .name").all_inner_texts()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", WIDTHS)
def test_the_page_fits_and_is_accessible(browser: Browser, report: Path, name: str, scheme: str) -> None:
    for page in opened(browser, report, width=WIDTHS[name], color_scheme=scheme):
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[name]
        page.locator(".board:visible tbody th button").first.click()
        page.wait_for_selector(".detail dl")
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[name]
        violations = Axe().run(page).response["violations"]
        assert [(it["id"], it["nodes"][0]["html"][:200]) for it in violations] == []


def test_headings_have_no_gaps(page: Page) -> None:
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(it => Number(it.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(page: Page) -> None:
    title = "1x16x32x32, inference"
    page.select_option("[data-facet=resolution]", "32x32")
    page.select_option("[data-facet=mode]", "inference")
    assert first_cells(page, title) == ["ham-nmf", "a2", "self-attn"]
    board = page.locator(".board:visible", has=page.locator("h3", has_text=title))
    head = board.locator("thead th", has_text="latency (ms)")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_cells(page, title) == ["ham-nmf", "a2", "self-attn"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert first_cells(page, title) == ["self-attn", "a2", "ham-nmf"]
    board.locator("thead th", has_text="block").locator("button").press("Space")
    assert first_cells(page, title) == ["a2", "ham-nmf", "self-attn"]


def test_numbers_are_sorted_as_numbers_and_what_is_missing_comes_last(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "64x64")
    title = "1x16x64x64"
    board = page.locator(".board:visible", has=page.locator("h3", has_text=title)).first
    for _ in range(2):
        board.locator("thead th", has_text="latency (ms)").locator("button").click()
        assert first_cells(page, title) == ["ham-nmf", "self-attn"]


def test_tables_are_chosen_by_resolution_mode_and_search(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "16x16")
    page.select_option("[data-facet=mode]", "training")
    shown = page.locator(".board:visible[data-resolution]")
    assert shown.count() == 1
    assert "1x16x16x16, training" in shown.locator("h3").inner_text()
    page.fill("#search", "NMF")
    assert first_cells(page, "1x16x16x16, training") == ["ham-nmf"]
    page.fill("#search", "no such thing")
    assert page.locator(".board:visible").count() == 0
    assert page.locator(".nothing:visible").count() > 0
    page.fill("#search", "")
    page.select_option("[data-facet=resolution]", "")
    page.select_option("[data-facet=mode]", "")
    assert page.locator(".board:visible[data-resolution]").count() > 4


def test_a_choice_that_no_table_has_takes_the_others_along(page: Page) -> None:
    page.select_option("[data-facet=mode]", "training")
    page.select_option("[data-facet=resolution]", "64x64")
    assert page.locator(".board:visible[data-resolution]").count() == 1
    assert page.input_value("[data-facet=mode]") == "inference"


def test_published_and_failed_rows_can_be_told_and_chosen(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "128x128")
    assert "Ham (NMF) (published)" in first_cells(page, "1x512x128x128")
    page.select_option("#states", "measured")
    assert set(first_cells(page, "1x512x128x128")) == {"self-attn", "ham-nmf"}
    page.select_option("#states", "failed")
    page.select_option("[data-facet=resolution]", "64x64")
    assert first_cells(page, "1x16x64x64") == ["self-attn"]
    page.select_option("#states", "published")
    links = page.locator(".board:visible a").evaluate_all("all => all.map(it => it.href)")
    assert links
    assert all(link.startswith("https://") for link in links)


def test_a_row_opens_to_its_options_protocol_environment_and_command(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "32x32")
    page.select_option("[data-facet=mode]", "inference")
    button = page.locator(".board:visible[data-resolution] tbody th button", has_text="ham-nmf")
    button.focus()
    page.keyboard.press("Enter")
    detail = page.locator(".detail").inner_text()
    page.wait_for_selector(".detail dl")
    detail = page.locator(".detail").inner_text()
    assert button.get_attribute("aria-expanded") == "true"
    for words in ("rank", "OPTIONS", "ENVIRONMENT", "a processor", "INPUT", "latency_ms_median"):
        assert words in detail
    command = page.locator(".detail pre").inner_text()
    assert command == (
        "ctxbench profile --blocks ham-nmf --resolutions 32x32 --channels 16 --batch 1 --modes infer "
        "--dtypes float32 --device cpu"
    )
    page.keyboard.press("Enter")
    assert page.locator(".detail").count() == 0


def test_a_row_of_seeds_opens_to_each_of_them(page: Page) -> None:
    page.locator(".board:visible h3", has_text="voc (paper)").locator("xpath=..").locator(
        "tbody th button", has_text="ham-nmf"
    ).click()
    page.wait_for_selector(".which")
    assert page.locator(".which button").all_inner_texts() == ["seed 0", "seed 1"]
    assert "0.78" in page.locator(".detail").inner_text()
    page.locator(".which button", has_text="seed 1").click()
    assert "0.79" in page.locator(".detail").inner_text()
    assert "a protocol" in page.locator(".detail").inner_text()


def test_what_is_open_stays_with_its_row_when_the_table_is_sorted(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "32x32")
    page.select_option("[data-facet=mode]", "inference")
    board = page.locator(".board:visible[data-resolution]")
    board.locator("tbody th button", has_text="self-attn").click()
    page.wait_for_selector(".detail dl")
    board.locator("thead th", has_text="block").locator("button").click()
    rows = board.locator("tbody tr")
    names = [row.inner_text().split()[0] for row in rows.all()]
    assert names[:1] == ["a2"]
    assert rows.nth(2).get_attribute("class") is None
    assert rows.nth(3).get_attribute("class") == "detail"


def test_a_row_that_was_open_and_filtered_out_takes_no_other_with_it(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "32x32")
    page.select_option("[data-facet=mode]", "inference")
    board = page.locator(".board:visible[data-resolution]")
    names = first_cells(page, "1x16x32x32")
    button = board.locator("tbody th button", has_text=names[0])
    button.click()
    page.wait_for_selector(".detail dl")
    page.fill("#search", "zzz")
    page.fill("#search", "")
    button.click()
    assert page.locator(".detail").count() == 0
    assert first_cells(page, "1x16x32x32") == names
    button.dblclick()
    assert page.locator(".detail").count() == 0


def test_ratios_can_refer_to_another_block(page: Page) -> None:
    page.select_option("[data-facet=resolution]", "32x32")
    page.select_option("[data-facet=mode]", "inference")
    page.select_option("#baseline", "ham-nmf")
    board = page.locator(".board:visible[data-resolution]")
    titles = board.locator("thead th").all_inner_texts()
    (place,) = [place for place, title in enumerate(titles) if title.startswith("latency / ")]
    assert titles[place].startswith("latency / ham-nmf")
    ratios = [row.locator("th, td").nth(place).inner_text() for row in board.locator("tbody tr").all()]
    assert ratios == ["1", "1.28", "16"]
    page.select_option("#baseline", "self-attn")
    again = [row.locator("th, td").nth(place).inner_text() for row in board.locator("tbody tr").all()]
    assert again == ["0.0625", "0.08", "1"]


def test_all_records_are_downloaded_and_no_text_becomes_a_formula(page: Page, report: Path) -> None:
    with page.expect_download() as found:
        page.click("#json")
    rows = json.loads(Path(found.value.path()).read_text(encoding="utf-8"))
    kept = Reading.of([report.parents[1] / "run"]).rows
    assert len(rows) == len(kept)
    by_id = {row["cell_id"]: row for row in kept}
    for row in rows:
        for name in ("spec", "reason", "macs_counted", "latency_ms_median", "height", "estimated"):
            assert row[name] == by_id[row["cell_id"]][name]
    with page.expect_download() as found:
        page.click("#csv")
    lines = list(
        csv.DictReader(io.StringIO(Path(found.value.path()).read_text(encoding="utf-8"), newline=""))
    )
    assert len(lines) == len(kept)
    assert {line["spec"] for line in lines} >= {"'=cmd|' /C calc'!A0", "'+1+1"}
    assert not [line for line in lines for value in line.values() if value and value[0] in "=+@"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_text_is_shown_as_text(page: Page, text: str) -> None:
    """The console, dialogs and requests are watched; the title would tell of a script that ran."""
    assert page.title().startswith("ctxbench")
    assert page.locator("img, iframe, object, [onmouseover], [onerror]").count() == 0
    page.select_option("[data-facet=resolution]", "8x8")
    page.select_option("[data-facet=mode]", "inference")
    shown = text[:900].replace("\u202e", "\ufffd")
    names = [name.rstrip("…") for name in first_cells(page, "1x16x8x8, inference")]
    assert [name for name in names if name and shown.startswith(name)]
    page.select_option("[data-facet=resolution]", "16x16")
    page.locator("tbody tr", has_text="error: " + text[:100].replace("\u202e", "\ufffd")).first.locator(
        "button"
    ).click()
    page.wait_for_selector(".detail dl")
    assert text[:8000] in page.locator(".detail").text_content()  # type: ignore[operator]


def test_the_page_prints_without_its_tools(page: Page) -> None:
    page.emulate_media(media="print")
    assert page.locator("#tools").is_hidden()
    assert page.locator(".board:visible table").count() > 0


def test_without_scripts_every_table_is_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    assert page.locator(".board:visible").count() == page.locator(".board").count() > 5
    context.close()


def test_ten_thousand_records_stay_handy(browser: Browser, tmp_path: Path) -> None:
    """All in one table, which is the worst. The fastest of a few sorts: the others waited for other tests."""
    rows = [
        profiled(f"block[rank={n}]", 8, 1 + n * 7919 % 10_000 / 100, cell_id=f"{n:016x}").row
        for n in range(10_000)
    ]
    path = tmp_path / "index.html"
    path.write_text(Report(rows).html([]), encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    for page in opened(browser, path, width=1400):
        assert page.locator(".board:visible tbody tr").count() == 100
        head = "document.querySelectorAll('.board thead th button')[1]"
        sort = f"() => {{ const start = performance.now(); {head}.click(); document.body.offsetHeight; return performance.now() - start; }}"
        assert min(page.evaluate(sort) for _ in range(5)) < 200
        assert "latency" in page.evaluate(f"{head}.textContent")
        page.fill("#search", "rank=9999]")
        assert page.locator(".board:visible tbody tr").count() == 1
        page.locator(".board:visible tbody th button").click()
        page.wait_for_selector(".detail dl")
        assert "block[rank=9999]" in page.locator(".detail").inner_text()


def test_a_site_leads_from_its_index_to_each_report_and_back(browser: Browser, tmp_path: Path) -> None:
    found = records()
    other = {"env_hash": "ba9876543210", "device_name": "another processor"}
    write_run(tmp_path / "one", found[:20])
    write_run(tmp_path / "<b>two", [record.model_copy(update=other) for record in found[:18]])
    index = write_site(Reading.of([tmp_path / "one", tmp_path / "<b>two"]), tmp_path / "site")
    for page in opened(browser, index, width=360):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("h3", has_text="Latency, inference").count() == 3, (
            "sizes that both machines measured"
        )
        assert Axe().run(page).response["violations"] == []
        page.get_by_role("link", name="<b>two").click()
        page.wait_for_selector("#tools:visible")
        assert page.title() == "ctxbench: <b>two"
        page.get_by_role("link", name="All reports").click()
        page.wait_for_selector("#tools:visible")
        page.get_by_role("link", name="Hamburger, ICLR 2021, Table 3").click()
        page.wait_for_selector("#tools:visible")
        assert page.input_value("#search") == '"Hamburger, ICLR 2021, Table 3"'
        assert page.locator(".board:visible tbody tr").count() == 48
        page.fill("#search", "")
        assert page.locator(".board:visible tbody tr").count() == 100
        page.get_by_role("button", name="Show all 869 rows").click()
        assert page.locator(".board:visible tbody tr").count() == 869
