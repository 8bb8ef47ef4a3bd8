"""A block looks the same in every figure, and a figure is the same bytes for the same records."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

import blocks
from ctxbench.families import families, registered
from ctxbench.figures import style
from ctxbench.figures.style import HUES, Picture, ink, look_of, looks, luminance, short, slug
from tests.test_plots import gallery, grid, lines

CATALOGUE = [(name, blocks.info(name).family) for name in blocks.names()]


def test_the_sources_name_every_block_of_the_catalogue_with_its_family() -> None:
    assert families() == dict(CATALOGUE)


def test_what_registers_nothing_of_its_own_is_no_block() -> None:
    source = '@register(NAME, family="a")\nclass A: ...\n@register("b", family="c")\nclass B: ...\n'
    assert list(registered(source)) == [("b", "c")]
    assert list(registered("def register(name): ...")) == []


def test_figures_need_neither_pytorch_nor_pandas() -> None:
    code = "import sys, ctxbench.figures.gallery as g; g.pictures([]); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_a_block_looks_the_same_whatever_the_other_blocks_are() -> None:
    together = looks([*CATALOGUE, ("mine", "my family")])
    for name, family in [*CATALOGUE, ("mine", "my family")]:
        alone = looks([(name, family)])
        assert alone == {name: together[name]} == {name: look_of(name, family)}


def test_a_block_looks_the_same_in_every_figure() -> None:
    specs = ("ham-nmf", "ham-cd", "self-attn", "none")
    seen: dict[str, set[tuple[str, str]]] = {}
    for picture in gallery(*grid(*specs), *grid(*specs[1:], mode="train")).values():
        if picture.name.startswith(("latency", "memory", "macs")):
            for spec, line in lines(picture.figure).items():
                seen.setdefault(spec, set()).add((line.get_color(), line.get_marker()))
    assert set(seen) == set(specs)
    assert all(len(found) == 1 for found in seen.values()), seen
    assert len(set.union(*seen.values())) == len(specs), "no two blocks look alike"


def test_any_two_blocks_of_the_catalogue_differ_in_colour_or_marker() -> None:
    seen = {
        name: (look_of(name, family)["color"], look_of(name, family)["marker"]) for name, family in CATALOGUE
    }
    assert len(set(seen.values())) == len(CATALOGUE), seen


def test_a_catalogue_of_many_families_and_blocks_has_a_look_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours in a family differ in lightness too, as they are told apart in grey."""
    known = [*HUES, "pooling", "convolution", "state space"]
    many = {f"{family}-{number:02}": family for family in known for number in range(15)}
    monkeypatch.setattr(style, "families", lambda: many)
    for cached in (style.hues, style.places):
        cached.cache_clear()
    try:
        seen = {name: look_of(name, family) for name, family in many.items()}
    finally:
        for cached in (style.hues, style.places):
            cached.cache_clear()
    assert len({(look["color"], look["marker"]) for look in seen.values()}) == len(many)
    for family in known:
        shades = [luminance(seen[f"{family}-{number:02}"]["color"]) for number in range(15)]
        assert all(abs(one - other) > 0.02 for one, other in itertools.pairwise(shades)), family


def test_variants_of_a_block_share_colour_and_marker_and_differ_in_line_and_filling() -> None:
    specs = ["ham-nmf", "ham-nmf[rank=16]", "ham-nmf[rank=8]"]
    found = looks([(spec, "decomposition") for spec in specs])
    assert len({(look["color"], look["marker"]) for look in found.values()}) == 1
    assert len({look["linestyle"] for look in found.values()}) == 3
    assert len({look["fillstyle"] for look in found.values()}) == 3
    assert "none" not in {look["fillstyle"] for look in found.values()}, "hollow says: not ranked"
    assert found["ham-nmf"] == look_of("ham-nmf", "decomposition")


def test_names_are_written_with_enough_contrast() -> None:
    for name, family in [*CATALOGUE, *((f"x{number}", f"family {number}") for number in range(20))]:
        assert 1.05 / (luminance(ink(look_of(name, family)["color"])) + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ham-nmf", "ham-nmf"),
        ("a" * 30 + "[" + "b" * 30 + ",rank=8]", "a" * 26 + "…" + "bbbbb,rank=8]"),
        ("a\x00b\nc\u202e", "a\ufffdb c\ufffd"),
        ("漢" * 40, "漢" * 13 + "…" + "漢" * 6),
    ],
)
def test_a_label_is_short_and_printable_and_keeps_its_end(text: str, expected: str) -> None:
    assert short(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("train_steps", "train-steps"), ("../../etc", "etc"), ("<b>", "b"), ("", "x"), ("$$", "x"), ("漢", "x")],
)
def test_a_part_of_a_file_name_is_safe(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_a_picture_is_drawn_once_and_not_before_it_is_looked_at() -> None:
    drawn = []

    def draw() -> Figure:
        drawn.append(Figure())
        return drawn[-1]

    picture = Picture("name", "caption", draw)
    assert drawn == []
    assert picture.png().startswith(b"\x89PNG")
    assert "<svg" in picture.svg
    assert picture.figure is drawn[0]
    assert len(drawn) == 1
    assert len(picture.png(dpi=50)) < len(picture.png())


def test_a_pdf_embeds_its_fonts_and_tells_no_time() -> None:
    picture = gallery(*grid("ham-nmf", "self-attn"))["macs-infer-b1-c16-float32"]
    found = picture.pdf()
    assert found.startswith(b"%PDF")
    assert b"/FontFile2" in found, "TrueType"
    assert b"/Type3" not in found
    assert b"/CreationDate" not in found
