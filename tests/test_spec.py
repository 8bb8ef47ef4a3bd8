"""What a user types becomes exactly the cells that were meant, each with an id of its own."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import blocks
from ctxbench.errors import UsageError
from ctxbench.spec import Cell, Grid, literal, parse_blocks, parse_integers, parse_resolutions, share

HERE = Path(__file__).parents[1]


def labels(text: str) -> list[str]:
    return [spec.label for spec in parse_blocks(text)]


def only_cell(**axes: Any) -> Cell:
    (cell,) = Grid(**({"channels": "64"} | axes)).cells()
    return cell


def refusal(**axes: Any) -> str:
    """The one line that a user is told."""
    with pytest.raises(UsageError) as error:
        Grid(**({"blocks": "none"} | axes)).cells()
    message = str(error.value)
    assert "\n" not in message
    return message


# Block specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ham-nmf", ["ham-nmf"]),
        ("ham-nmf[rank=32]", ["ham-nmf[rank=32]"]),
        ("self-attn, ham-nmf ,a2", ["self-attn", "ham-nmf", "a2"]),
        ("ham-nmf[rank=8/16],none", ["ham-nmf[rank=8]", "ham-nmf[rank=16]", "none"]),
        ("none,ham-*[rank=8]", ["none", "ham-cd[rank=8]", "ham-nmf[rank=8]", "ham-vq[rank=8]"]),
        ("non?", ["none"]),
        ("ham-nmf [ rank = 8 , spatial = False ]", ["ham-nmf[rank=8,spatial=False]"]),
        ("ham-nmf[]", ["ham-nmf"]),
        ("none,", ["none"]),
        ("ham-cd[inv_t=1e-2]", ["ham-cd[inv_t=0.01]"]),
        ("ham-cd[inv_t=1]", ["ham-cd[inv_t=1.0]"]),
        ("ham-nmf[latent=none/32]", ["ham-nmf", "ham-nmf[latent=32]"]),
        ("ham-nmf[spatial=false]", ["ham-nmf[spatial=False]"]),
        ("ham-nmf[version=v2+]", ["ham-nmf[version=v2+]"]),
    ],
)
def test_specs_are_read_as_they_are_meant(text: str, expected: list[str]) -> None:
    assert labels(text) == expected


def test_alternatives_of_several_options_are_multiplied() -> None:
    assert labels("ham-nmf[train_steps=1/3/6,gradient=one-step/bptt]") == [
        "ham-nmf[train_steps=1]",
        "ham-nmf[gradient=bptt,train_steps=1]",
        "ham-nmf[train_steps=3]",
        "ham-nmf[gradient=bptt,train_steps=3]",
        "ham-nmf",
        "ham-nmf[gradient=bptt]",
    ]


def test_all_is_every_block_and_a_wildcard_those_that_match() -> None:
    assert labels("all") == blocks.names()
    assert labels("*") == blocks.names()
    assert labels("ham-*") == [name for name in blocks.names() if name.startswith("ham-")]


def test_doubles_are_dropped_and_the_order_is_kept() -> None:
    assert labels("self-attn,ham-nmf,self-attn,ham-nmf[rank=64],ham-*") == [
        "self-attn",
        "ham-nmf",
        "ham-cd",
        "ham-vq",
    ]


@pytest.mark.parametrize("text", ["ham-nmf[rank=8,spatial=False]", "ham-cd[inv_t=2.0]", "danet[convs=True]"])
def test_a_label_selects_what_it_names(text: str) -> None:
    (spec,) = parse_blocks(text)
    assert spec.label == text
    assert parse_blocks(spec.label) == [spec]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("true", True),
        ("False", False),
        ("FALSE", False),
        ("None", None),
        ("none", None),
        ("1", 1),
        ("-5", -5),
        ("1.0", 1.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("one-step", "one-step"),
        ("v2+", "v2+"),
        ("'1'", "'1'"),
        ("[1]", "[1]"),
        ("1+2j", "1+2j"),
        ("__import__", "__import__"),
        ("", ""),
        ("\0", "\0"),
    ],
)
def test_values_are_numbers_true_false_none_or_text(text: str, value: Any) -> None:
    read = literal(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", ["1or", "0x", "1_", "1if 2else 3", "(" * 300, "9" * 5000, "\\d"])
def test_no_text_is_too_odd_to_be_read(text: str) -> None:
    """Nor does Python add a warning of its own to the one line that a user is told."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert literal(text) == text
    assert shown == []


# Refusals


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ham-nfm", ["unknown block 'ham-nfm'", "did you mean 'ham-nmf'?"]),
        ("self-atn[scale=True]", ["unknown block 'self-atn'", "did you mean 'self-attn'?"]),
        ("zzz", ["unknown block 'zzz'", "known blocks", "ham-nmf", "self-attn"]),
        ("x-*", ["no block matches 'x-*'", "known blocks", "self-attn"]),
        ("ham-nmf[rnk=8]", ["'ham-nmf'", "no option 'rnk'", "its options", "rank", "train_steps"]),
        ("none[rank=8]", ["'none'", "no option 'rank'", "its options: none"]),
        ("ham-nmf[rank=eight]", ["rank='eight' is not accepted", "whole number"]),
        ("ham-nmf[rank=8.0]", ["rank=8.0 is not accepted", "whole number"]),
        ("aspp[kernel=3.0]", ["kernel=3.0 is not accepted", "1 or 3"]),
        ("ham-nmf[rank=True]", ["rank=True is not accepted", "whole number"]),
        ("ham-nmf[spatial=1]", ["spatial=1 is not accepted", "True or False"]),
        ("ham-nmf[latent=big]", ["latent='big' is not accepted", "whole number", "None"]),
        ("ham-nmf[gradient=full]", ["gradient='full' is not accepted", "one-step", "bptt"]),
        ("ham-nmf[rank=0]", ["rank must be above 0, not 0"]),
        ("ham-nmf[rank=-5]", ["rank must be above 0, not -5"]),
        ("ham-nmf[rank]", ["cannot read 'rank'", "option=value"]),
        ("ham-nmf[rank=]", ["cannot read 'rank='", "option=value"]),
        ("ham-nmf[=8]", ["cannot read '=8'", "option=value"]),
        ("ham-nmf[rank=8//16]", ["cannot read 'rank=8//16'", "option=a/b"]),
        ("ham-nmf[rank=8/]", ["cannot read 'rank=8/'", "option=a/b"]),
        ("ham-nmf[rank=8,rank=16]", ["'rank' stands twice", "rank=a/b"]),
        ("ham-nmf[rank=8", ["cannot read block", "name[option=value,...]"]),
        ("ham-nmf]rank=8[", ["cannot read block", "name[option=value,...]"]),
        ("[rank=8]", ["cannot read block", "name[option=value,...]"]),
        ("ham-nmf[rank=8]x", ["cannot read block", "name[option=value,...]"]),
        ("ham-nmf[[rank=8]]", ["cannot read block", "name[option=value,...]"]),
        ("", ["--blocks is empty", "all"]),
        (" , ", ["--blocks is empty", "all"]),
    ],
)
def test_a_wrong_spec_is_answered_with_what_to_type(text: str, parts: list[str]) -> None:
    message = refusal(blocks=text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "text", ["0", "-5", "x", "8x", "x8", "0x8", "8x0", "8x8x8", "1.5", "8 x 8", "٨", "1000000", ""]
)
def test_a_wrong_resolution_is_answered_with_how_to_write_one(text: str) -> None:
    message = refusal(resolutions=text)
    assert message.startswith("--resolutions")
    assert "write 64 or 64x128" in message or not text


@pytest.mark.parametrize("axis", ["channels", "batch"])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", "1e3", "٨", "²", "8,0", ""])
def test_channels_and_batch_are_whole_numbers_above_zero(axis: str, text: str) -> None:
    message = refusal(**{axis: text})
    assert message.startswith(f"--{axis}")
    assert "whole number above 0" in message or not text


@pytest.mark.parametrize(("axis", "known"), [("modes", "infer, train"), ("dtypes", "float32, bfloat16")])
def test_an_unknown_mode_or_dtype_is_answered_with_the_known_ones(axis: str, known: str) -> None:
    message = refusal(**{axis: "infer32"})
    assert f"--{axis}: 'infer32' is not known; choose from {known}" in message


@pytest.mark.parametrize(
    ("text", "channels", "parts"),
    [
        ("self-attn[heads=3]", "64", ["self-attn[heads=3]", "64 channels", "divisor of 64"]),
        ("ham-nmf[heads=5]", "512", ["ham-nmf[heads=5]", "512 channels", "heads=5"]),
        ("ham-nmf[latent=30,heads=4]", "512", ["latent=30", "heads=4"]),
        ("self-attn[heads=8]", "64,60", ["self-attn[heads=8]", "60 channels", "divisor of 60"]),
    ],
)
def test_channels_that_do_not_split_into_heads_are_refused_before_anything_runs(
    text: str, channels: str, parts: list[str]
) -> None:
    message = refusal(blocks=text, channels=channels)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "axes",
    [
        {"blocks": "ham-nmf[rank=99999999999999999999]"},
        {"blocks": "self-attn", "channels": "99999999999"},
        {"blocks": "self-attn", "channels": "9" * 30},
        {"channels": "9" * 5000},
        {"batch": "9" * 5000},
    ],
    ids=lambda axes: str(axes)[:50],
)
def test_a_number_beyond_all_measure_is_the_users_mistake_and_no_crash(axes: dict[str, str]) -> None:
    assert refusal(**axes)


def test_float16_is_refused_on_a_cpu_and_nowhere_else() -> None:
    assert "bfloat16" in refusal(dtypes="float32,float16", device="cpu")
    assert only_cell(blocks="none", dtypes="float16", device="cuda").dtype == "float16"
    assert only_cell(blocks="none", dtypes="float16", device="cpu", estimated=True).dtype == "float16"


# The grid


def test_resolutions_are_squares_or_height_by_width() -> None:
    assert parse_resolutions("32,64x128") == [(32, 32), (64, 128)]
    assert parse_resolutions(" 7x5 , 1 ,999999") == [(7, 5), (1, 1), (999999, 999999)]
    assert parse_resolutions("8,8x8,08") == [(8, 8)]


def test_numbers_are_read_in_their_order_without_doubles() -> None:
    assert parse_integers("4,1,4", "--batch") == [4, 1]


def test_a_grid_is_the_product_of_its_axes() -> None:
    cells = Grid(
        blocks="none,a2",
        resolutions="8,4x6",
        channels="16,8",
        batch="1,2",
        modes="infer,train",
        dtypes="float32,bfloat16",
    ).cells()
    assert len(cells) == len({cell.id for cell in cells}) == 2**6
    assert {cell.shape for cell in cells} == {
        (batch, channels, *size) for batch in (1, 2) for channels in (8, 16) for size in ((8, 8), (4, 6))
    }


def test_a_group_differs_in_the_block_alone_and_stands_together() -> None:
    cells = Grid(blocks="none,a2,ccnet", resolutions="8,4", channels="16", modes="infer,train").cells()
    groups = [cell.group for cell in cells]
    assert len(set(groups)) == 4
    for start in range(0, len(cells), 3):
        members = cells[start : start + 3]
        assert len({cell.group for cell in members}) == 1
        assert [cell.block for cell in members] == ["none", "a2", "ccnet"]


def test_small_inputs_come_first() -> None:
    cells = Grid(blocks="none", resolutions="64,8,16x8", batch="4,1", channels="16").cells()
    sizes = [cell.batch * cell.height * cell.width for cell in cells]
    assert sizes == sorted(sizes)


def test_defaults_are_one_image_of_512_channels_in_inference() -> None:
    (cell,) = Grid(blocks="none").cells()
    assert (cell.shape, cell.dtype, cell.mode, cell.compiled) == ((1, 512, 32, 32), "float32", "infer", False)


def test_a_cell_makes_its_block_in_its_mode_with_its_options() -> None:
    training = only_cell(blocks="ham-nmf[rank=5]", modes="train").create()
    assert training.training
    assert training.channels == 64
    assert training.macs(9, 9) == blocks.create("ham-nmf", 64, rank=5).train().macs(9, 9)
    assert not only_cell(blocks="ham-nmf").create().training


def test_planning_takes_no_memory() -> None:
    """These weights would take more than a terabyte."""
    assert torch.empty(0).device.type == "cpu"
    assert len(Grid(blocks="self-attn", channels="300000").cells()) == 1
    assert torch.empty(0).device.type == "cpu", "the default device is as it was"


# Ids

scalars = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 1e30]),
    st.booleans(),
    st.none(),
    st.sampled_from(
        ["", "0", "1", "1.0", "-5", "5", "True", "true", "None", "null", "[0,1]", "[0.1]", '"', "a,b"]
    ),
)
options = st.dictionaries(st.sampled_from(["a", "b", "rank", "a,b"]), scalars, max_size=3)
small = st.integers(1, 3)
cells = st.builds(
    lambda given_options, **fields: Cell(options=tuple(given_options.items()), **fields),
    options,
    block=st.sampled_from(["none", "a2", "a", "2"]),
    batch=small,
    channels=small,
    height=small,
    width=small,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    mode=st.sampled_from(["infer", "train"]),
    compiled=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
    estimated=st.booleans(),
    seed=st.integers(0, 2),
    label=st.text(max_size=2),
)
FIELDS = [field.name for field in dataclasses.fields(Cell) if field.name not in ("label", "options")]


def meaning(cell: Cell) -> tuple[Any, ...]:
    """All that tells cells apart, types of values included: Python holds 1, 1.0 and True equal."""
    given_options = sorted((name, type(value).__name__, repr(value)) for name, value in cell.options)
    return (*(repr(getattr(cell, name)) for name in FIELDS), tuple(given_options))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(cells, cells)
def test_ids_are_equal_exactly_where_cells_are(one: Cell, other: Cell) -> None:
    assert (one.id == other.id) == (meaning(one) == meaning(other))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cells, cells, st.sampled_from([*FIELDS, "options"]))
def test_a_change_of_any_one_field_changes_the_id(one: Cell, other: Cell, name: str) -> None:
    changed = dataclasses.replace(one, **{name: getattr(other, name)})
    assert (changed.id == one.id) == (meaning(changed) == meaning(one))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(scalars, scalars)
def test_values_that_look_alike_never_collide(one: Any, other: Any) -> None:
    base = only_cell(blocks="none")
    ids = {dataclasses.replace(base, options=(("rank", value),)).id for value in (one, other)}
    same = (type(one), repr(one)) == (type(other), repr(other))
    assert len(ids) == (1 if same else 2)


def test_an_id_depends_neither_on_the_order_of_options_nor_on_naming_defaults() -> None:
    plain = only_cell(blocks="ham-nmf")
    assert only_cell(blocks="ham-nmf[rank=64,gradient=one-step]").id == plain.id
    one, other = "ham-nmf[rank=8,spatial=False]", "ham-nmf[spatial=False,rank=8]"
    assert only_cell(blocks=one).id == only_cell(blocks=other).id != plain.id
    assert dataclasses.replace(plain, options=plain.options[::-1]).id == plain.id
    assert only_cell(blocks="ham-cd[inv_t=100]").id == only_cell(blocks="ham-cd").id


def test_an_id_is_a_safe_file_name() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", only_cell(blocks="ham-nmf").id)


def test_an_id_is_the_same_in_every_process() -> None:
    script = (
        "from ctxbench.spec import Grid; print(Grid(blocks='ham-nmf[rank=8]', channels='64').cells()[0].id)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
        env=os.environ | {"PYTHONHASHSEED": "1"},
    ).stdout
    assert printed.strip() == only_cell(blocks="ham-nmf[rank=8]").id


# Shards


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_are_disjoint_and_their_union_is_the_plan(count: int) -> None:
    plan = Grid(blocks="none,a2,ham-nmf", resolutions="8,16,32", modes="infer,train", channels="8").cells()
    shards = [share(plan, f"{number}/{count}") for number in range(count)]
    found = [cell.id for cells in shards for cell in cells]
    assert sorted(found) == sorted(cell.id for cell in plan)
    for cells in shards:  # what is compared is measured together
        for cell in cells:
            assert [other.block for other in cells if other.group == cell.group] == ["none", "a2", "ham-nmf"]


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "0/0", "a/b", "0/2/3", "", "1 / 2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="0/2 and 1/2"):
        share([], text)
