"""What the documents show is what the program does."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import blocks
from blocks import registry
from ctxbench import gate
from ctxbench.cli import main
from ctxbench.gate import relative_error

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(ctxbench (?:profile|task) [^#\n]*)", README.replace("\\\n", " "), re.MULTILINE)


def code(document: str, language: str) -> str:
    """All that a document shows in a language, from top to bottom."""
    return "".join(re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL))


def test_the_block_of_contributing_is_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks.names()
    monkeypatch.setattr(registry, "_catalogue", dict(registry._catalogue))
    path = tmp_path / "mean.py"
    path.write_text(code(CONTRIBUTING, "python"))
    arguments = ["profile", "--blocks", "mean,mean[bias=False]", "--estimate", "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(main, [*arguments, "--plugin", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "All counted MACs equal the closed form." in shown.output
    for bias in (True, False):
        gate.check(lambda bias=bias: blocks.create("mean", 16, bias=bias), "cpu", torch.float32)
        block = blocks.create("mean", 16, bias=bias)
        assert block.param_count() == sum(parameter.numel() for parameter in block.parameters())


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: dict[str, Any] = {}
    exec(code(README, "python"), shown)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession("block.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(1, 512, 32, 48)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(y), shown["block"](x)) <= 1e-4
    import onnx

    assert [it.version for it in onnx.load("block.onnx").opset_import if not it.domain] == [20]


def test_the_readme_lists_every_block() -> None:
    section = README.partition("\n## Blocks\n")[2].partition("\n## ")[0]
    number, _, rest = section.strip().partition(" so far")
    listed = re.findall(r"`([a-z0-9-]+)`", rest.partition("\n\n")[2].rpartition("\n\n")[0])
    assert sorted(listed) == sorted(blocks.names())
    assert int(number) == len(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_understood(command: str) -> None:
    import shlex

    shown = CliRunner().invoke(main, [*shlex.split(command)[1:], "--dry-run"])
    assert shown.exit_code == 0, shown.output


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(registry).failed == 0
    assert doctest.testmod(registry).attempted > 0


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_within_the_project_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []
