"""What the server of the worker processes loads once, so that each worker starts with it.

Nothing is calculated here: a process must not be divided once it runs threads of its own.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore uses what PyTorch will give up
    import fvcore.nn
    import torch.fx.experimental.symbolic_shapes

    import blocks
    import ctxbench.settle

__all__ = ["blocks", "ctxbench", "fvcore", "torch"]

blocks.names()
