"""Weights from files of others: official HamNet, Light-Ham VAN, mmsegmentation's heads, and our own.

Only tensors are ever read (`weights_only`). Every key must be accounted for and have its shape: a
silent mismatch would be a wrong score.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHOWN, SHOWN_LETTERS = 5, 100
PREFIX = "backbone."
CONTAINERS = ("state_dict", "model", "net", "weights")
# Keys in the files of others, and here; all that fit are applied, in this order.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"^module\.", ""),
    # mmsegmentation's LightHamHead, and the one of the official Light-Ham
    (r"^decode_head\.hamburger\.ham_in\.conv\.", "decode_head.context.lower_bread."),
    (r"^decode_head\.hamburger\.ham_out\.conv\.", "decode_head.context.upper_bread.0."),
    (r"^decode_head\.hamburger\.ham_out\.(gn|bn)\.", "decode_head.context.upper_bread.1."),
    # the official HamHead, of the VAN networks at 1/8
    (r"^decode_head\.ham_in\.conv\.", "decode_head.context.lower_bread."),
    (r"^decode_head\.ham_out\.conv\.", "decode_head.context.upper_bread.0."),
    (r"^decode_head\.ham_out\.(gn|bn)\.", "decode_head.context.upper_bread.1."),
    (r"^decode_head\.conv_cat\.", "decode_head.fuse."),
    # the official HamNet of PASCAL VOC, whose backbone is a sequence: stem, norm, relu, pool, four layers
    (r"^backbone\.0\.([0-9])\.", r"backbone.stem.\1."),
    (r"^backbone\.1\.", "backbone.stem.7."),
    (r"^backbone\.4\.", "backbone.layer1."),
    (r"^backbone\.5\.", "backbone.layer2."),
    (r"^backbone\.6\.", "backbone.layer3."),
    (r"^backbone\.7\.", "backbone.layer4."),
    # a classifier with the stem of three convolutions, as the official HamNet starts from
    (r"^(backbone\.)?conv1\.([0-9])\.", r"\1stem.\2."),
    (r"^(backbone\.)?bn1\.", r"\1stem.7."),
    (r"^(squeeze|align)\.(conv|bn)\.", r"decode_head.\1.\2."),
    (r"^hamburger\.lower_bread\.(0\.)?", "decode_head.context.lower_bread."),
    (r"^hamburger\.cheese\.conv\.", "decode_head.context.cheese.0."),
    (r"^hamburger\.cheese\.bn\.", "decode_head.context.cheese.1."),
    (r"^hamburger\.upper_bread\.", "decode_head.context.upper_bread."),
    (r"^hamburger\.coef_ham$", "decode_head.context.ham_gate"),
    (r"^hamburger\.coef_shortcut$", "decode_head.context.shortcut_gate"),
    (r"^fc\.1\.", "decode_head.conv_seg."),
)
# Bases that are drawn anew for every image are in no file of others.
DRAWN = re.compile(r"^decode_head\.context\.hams\.[0-9]+\.bases$")
UNUSED = re.compile(r"^(backbone\.(fc|head)\.|.*\.num_batches_tracked$|data_preprocessor\.|crit\.)")


class CheckpointError(ValueError):
    """A file of weights that does not fit; the message lists the first misfits."""


def load(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the file by the names of `wanted`, whose shapes they have.

    Raises:
        CheckpointError: for a file that is none, holds more than tensors, or does not fit.
    """
    return fitted(path, by_our_names(path), wanted)


def load_backbone(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights in a file of a classifier, or of a whole network, by the names of `wanted`.

    Raises:
        CheckpointError: as `load`.
    """
    names = by_our_names(path)
    whole = any(name.startswith(PREFIX) for name in names)
    found = {name if whole else f"{PREFIX}{name}": value for name, value in names.items()}
    own = {name: value for name, value in wanted.items() if name.startswith(PREFIX)}
    return fitted(path, {name: value for name, value in found.items() if name.startswith(PREFIX)}, own)


def by_our_names(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in tensors(path).items():
        if (ours := renamed(name)) in found:
            raise CheckpointError(f"{path} holds {ours[:SHOWN_LETTERS]} twice")
        found[ours] = value
    return found


def fitted(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is wanted, from what was found; every name must be accounted for.

    Raises:
        CheckpointError: with the first misfits.
    """
    found = {name: value for name, value in found.items() if name in wanted or not UNUSED.match(name)}
    spare = {name: value for name, value in wanted.items() if UNUSED.match(name) or DRAWN.match(name)}
    missing = [f"missing {name}" for name in wanted if name not in found and name not in spare]
    unknown = [f"unknown {name[:SHOWN_LETTERS]}" for name in found if name not in wanted]
    ours, faults = {}, []
    for name in (name for name in found if name in wanted):
        fault, ours[name] = cast(found[name], wanted[name])
        faults += [f"{name} is {fault}"] if fault else []
    if misfits := [*faults, *missing, *unknown]:
        more = f" and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
        raise CheckpointError(f"{path} does not fit: {'; '.join(misfits[:SHOWN])}{more}")
    return spare | ours


def cast(value: Tensor, wanted: Tensor) -> tuple[str, Tensor]:
    """What keeps a tensor from taking the place of the wanted one, "" for nothing; and the tensor in its dtype."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "no plain tensor", wanted
    if value.shape != wanted.shape:
        return f"{shape(value)}, not {shape(wanted)}", wanted
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex() != wanted.is_complex():
        return f"of {value.dtype}, not {wanted.dtype}", wanted
    ours = value.to(wanted.dtype)
    return ("" if ours.isfinite().all() else "not finite"), ours


def renamed(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name, count=1)
    return name


def tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name, from the place where it keeps them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} holds more than tensors, and is not read") from None
    except Exception as error:
        raise CheckpointError(f"{path} is no checkpoint: {type(error).__name__}") from None
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no weights by name")
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(found) < len(content):
        raise CheckpointError(f"{path} holds other things beside the weights")
    return found


def shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"
