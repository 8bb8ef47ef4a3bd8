"""What the server of the worker processes loads once, so that each worker starts with it.

Nothing is calculated here: a process must not be divided once it runs threads of its own.
"""

import blocks
import ctxbench.settle

__all__ = ["blocks", "ctxbench"]

blocks.names()
