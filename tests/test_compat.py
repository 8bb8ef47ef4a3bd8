"""The packages that segmentation stands on are of versions that it knows, or it says which it needs."""

from __future__ import annotations

import pytest

from tasks.segmentation import compat


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = compat.version
    monkeypatch.setattr(compat, "version", lambda name: versions.get(name.replace("-", "_"), real(name)))


def test_the_packages_here_will_do() -> None:
    compat.check_versions()
    compat.prepare()


def test_a_compiled_mmcv_will_do_in_place_of_the_light_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, mmcv="2.1.0", mmcv_lite=None)
    compat.check_versions()


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"mmsegmentation": None}, "needs mmsegmentation >=1.2,<1.3, and it is missing"),
        ({"mmsegmentation": "1.1.0"}, "and 1.1.0 is installed"),
        ({"mmengine": "0.11.0"}, "needs mmengine >=0.10,<0.11, and 0.11.0 is installed"),
        ({"mmcv": None, "mmcv_lite": None}, "needs mmcv or mmcv-lite"),
        ({"mmcv": "1.7.0", "mmcv_lite": None}, "and 1.7.0 is installed"),
    ],
)
def test_another_version_is_told_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], words: str
) -> None:
    pretend(monkeypatch, **versions)
    with pytest.raises(compat.MissingPackageError, match=words) as found:
        compat.check_versions()
    assert 'pip install "ctxbench[seg]"' in str(found.value)


def test_no_stand_in_is_left_behind() -> None:
    """mmengine would take it for a compiled mmcv."""
    import importlib.util

    compat.prepare()
    assert importlib.util.find_spec("mmcv._ext") is None or compat.version("mmcv") is not None
