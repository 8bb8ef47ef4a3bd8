"""The catalogue of context blocks: pure PyTorch, one file for each block or for a few that are alike.

`create` builds a block by name, `names` lists them, `info` describes one, and `@register` adds
one: a new file in this folder is found by itself.
"""

from blocks.base import ContextBlock
from blocks.registry import (
    BlockInfo,
    ExportLimit,
    Option,
    Paper,
    UnknownBlockError,
    create,
    info,
    names,
    register,
)

__all__ = [
    "BlockInfo",
    "ContextBlock",
    "ExportLimit",
    "Option",
    "Paper",
    "UnknownBlockError",
    "create",
    "info",
    "names",
    "register",
]
