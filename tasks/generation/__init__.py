"""Image generation: GANs with a slot for a block in both networks, and scores of what they make."""

from __future__ import annotations

import importlib.util

PACKAGES = {
    "lightning_fabric": "lightning-fabric",
    "torch_fidelity": "torch-fidelity",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}


def prepare() -> None:
    """See whether the packages are there.

    Raises:
        ImportError: saying what to install.
    """
    absent = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ImportError(f"image generation needs {', '.join(absent)}: pip install 'ctxbench[gen]'")
