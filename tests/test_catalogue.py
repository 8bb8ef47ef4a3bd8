"""What is known of a block without running it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import blocks
from ctxbench.catalogue import describe
from ctxbench.cli import main
from ctxbench.errors import UsageError


def ctxbench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["blocks", *arguments])


def test_the_costs_are_those_of_the_spec_at_the_shapes() -> None:
    found = describe("ham-nmf[rank=32]", resolutions="8,8x16", channels="16", batch="2", dtypes="bfloat16")
    assert found.spec.label == "ham-nmf[rank=32]"
    assert [(row["height"], row["width"], row["mode"]) for row in found.costs] == [
        (8, 8, "infer"),
        (8, 8, "train"),
        (8, 16, "infer"),
        (8, 16, "train"),
    ]
    block = blocks.create("ham-nmf", 16, rank=32).eval()
    assert found.costs[0]["macs"] == 2 * block.macs(8, 8)
    assert found.costs[0]["params"] == block.param_count()
    assert found.costs[0]["macs_backward"] is None
    assert found.costs[1]["macs_backward"] > 0
    assert {row["reason"] for row in found.costs} == {None}


def test_what_cannot_be_is_told_with_its_reason() -> None:
    infer, train = describe("ham-nmf", resolutions="1", channels="16").costs
    assert infer["reason"] is None
    assert "normalisation needs more than one value" in train["reason"]
    assert train["macs"] is None


@pytest.mark.parametrize("text", ["ham-*", "none,a2", "ham-nmf[rank=1/2]"])
def test_several_blocks_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="name one"):
        describe(text, resolutions="8")


@pytest.mark.parametrize("closed_form", ["macs", "param_count"])
def test_a_closed_form_that_is_wrong_is_told_beside_what_was_counted(
    monkeypatch: pytest.MonkeyPatch, closed_form: str
) -> None:
    cost = describe("a2", resolutions="8", channels="16").costs[0]
    monkeypatch.setattr(blocks.info("a2").cls, closed_form, lambda self, *sides: 1)
    found = describe("a2", resolutions="8", channels="16")
    for row in found.costs:
        assert f"{closed_form}() gives 1, but" in row["reason"]
    assert found.costs[0] | {"reason": None} == cost
    assert found.costs_table().header[-1] == "flags"
    shown = ctxbench("a2", "--resolutions", "8", "--channels", "16")
    assert shown.exit_code == 0
    assert "gives 1, but" in " ".join(shown.output.split())


@pytest.mark.parametrize("text", ["ham-nmf[rank=32]", "self-attn[impl=sdpa]", "none"])
def test_a_description_is_plain_data(text: str) -> None:
    found = describe(text, resolutions="1,8", channels="16")
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["spec"] == text
    assert plain["chosen"] == dict(found.spec.options)
    assert set(plain["chosen"]) == set(plain["options"])
    assert plain["costs"] == found.costs


def test_the_command_shows_options_paper_and_costs() -> None:
    shown = ctxbench("ham-nmf[rank=32]", "--resolutions", "8", "--channels", "16")
    assert shown.exit_code == 0
    for part in (
        "train_steps=6",
        "ICLR 2021",
        "cost of ham-nmf[rank=32]",
        "1x16x8x8",
        "predicted peak (MiB)",
    ):
        assert part in shown.output


def test_programs_read_the_same() -> None:
    found = json.loads(ctxbench("a2", "--json", "--resolutions", "8", "--channels", "16").stdout)
    assert (found["name"], found["options"]["c_m"]["default"]) == ("a2", None)
    assert found["costs"][0]["macs"] == blocks.create("a2", 16).macs(8, 8)
    assert "@" in found["paper"]["bibtex"]
    everything = json.loads(ctxbench("--json").stdout)
    assert [each["name"] for each in everything] == blocks.names()


@pytest.mark.parametrize(
    ("spec", "program", "words"),
    [
        ("a2", "torch.export", "yes, height and width may stay open"),
        ("ssm", "torch.export", "yes, the example's height and width alone: the number of pixels"),
        ("ham-cd", "ONNX", "no: it has no Cholesky"),
        (
            "ham-vq",
            "ONNX",
            "yes, height and width may stay open; not with spatial=False or dual=True: it has no inverse",
        ),
        ("ham-vq[spatial=False]", "ONNX", "no: it has no inverse error function"),
    ],
)
def test_what_exports_is_told_of_the_options_that_were_chosen(spec: str, program: str, words: str) -> None:
    axes = ("--resolutions", "8", "--channels", "16")
    plain = json.loads(ctxbench(spec, "--json", *axes).stdout)
    assert plain["export"][program].startswith(words)
    assert f"{program} {words}" in " ".join(ctxbench(spec, *axes).output.split())


def test_limits_of_all_blocks_are_plain_data() -> None:
    limits = {each["name"]: each["export_limits"] for each in json.loads(ctxbench("--json").stdout)}
    assert limits["a2"] == []
    why = "it has no inverse error function"
    assert limits["ham-vq"][0] == {"program": "ONNX", "why": why, "sizes": False, "only": ["spatial", False]}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (["ONNX"], "must be a tuple of ExportLimit"),
        ((blocks.ExportLimit("ONNX", "why", only=("depth", 3)),), "no option 'depth', which a limit names"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(limits: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(blocks.info("a2"), limits=limits)


def test_bibtex_stands_alone() -> None:
    assert ctxbench("ham-cd", "--bibtex").stdout.startswith("@inproceedings{geng2021attention,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ham-nfm",), "did you mean 'ham-nmf'?"),
        (("ham-nmf[depth=3]",), "has no option 'depth'; its options: "),
        (("ham-nmf[rank=8/16]",), "selects 2 blocks; name one"),
        (("a2", "--rank", "3"), "--rank"),
        (("a2", "--resolutions", "many"), "many"),
        (("a2", "--channels", "0"), "--channels"),
        (("none", "--bibtex"), "no paper"),
        (("--bibtex",), "needs the name"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    shown = ctxbench(*arguments)
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
    assert words in shown.stderr
