"""Named grids."""

from __future__ import annotations

from ctxbench.spec import Grid

PRESETS = {
    # Table 3 of the Hamburger paper: the blocks of it that are in the catalogue.
    "paper": Grid(
        blocks="self-attn,danet[convs=True],a2,apc,dm,ham-cd,ham-nmf",
        resolutions="128",
        modes="infer,train",
    ),
}

DEMO_BLOCKS = "self-attn,non-local,ccnet,emanet,a2,ham-nmf,ham-cd,none"

# What `ctxbench demo` runs: measured while it takes minutes on two cores, estimated beyond.
DEMO = (
    Grid(blocks=DEMO_BLOCKS, resolutions="16,32,64", modes="infer,train"),
    Grid(blocks=DEMO_BLOCKS, resolutions="128,256,512", modes="infer,train", estimated=True),
)
DEMO_TRAINED = "none,ham-nmf,self-attn"  # in the legend diagnostic, half a minute of CPU each
DEMO_UPDATES = 600  # of GANs of digits with the same blocks, half a minute of CPU each
DEMO_SHOWN = (64, 128)  # the terminal shows these resolutions; the page shows all
