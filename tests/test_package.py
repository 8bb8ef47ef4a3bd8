"""The wheel: what is in it, and that it works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(*command: str, cwd: Path, **environment: str) -> str:
    finished = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"ctxbench", "blocks", "tasks"}
    assert {"ctxbench/py.typed", "blocks/py.typed", "tasks/py.typed"} <= set(names)
    assert "ctxbench/published/paper.csv" in names
    assert "ctxbench/templates/report.html.j2" in names


def test_the_wheel_estimates_the_papers_table_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = run(
        sys.executable,
        "-c",
        "import ctxbench; print(ctxbench.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert Path(where.strip()).is_relative_to(installed)
    shown = run(
        sys.executable, "-m", "ctxbench", "profile", "--preset", "paper", "--estimate", "--out", "run",
        cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert "reproduced" in shown
    run(sys.executable, "-m", "ctxbench", "report", "run", cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
