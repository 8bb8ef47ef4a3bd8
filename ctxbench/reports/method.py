"""How records are made, in the words of a report."""

from __future__ import annotations

METHOD = {
    "profile": (
        "MACs: multiply-accumulates of convolutions and matrix products in one forward, counted by the "
        "dispatcher and checked against each block's closed form. Element-wise work is not counted. Backward "
        "MACs are those executed, which depend on the kernels.",
        "Predicted peak memory: bytes alive at the worst moment, with the block's parameters and without its "
        "input and the gradient handed to its output, found by following the life of every storage; work space "
        "inside kernels is not seen. The allocator's peak is CUDA's own, counted alike. Training is one forward "
        "and backward, for the gradients of the parameters and of the input.",
        "Latency: median over interleaved rounds in random order, ± half of its 95 % order-statistic interval. "
        "Rounds end when that is within 2 % (CUDA: 1 %), which makes it a little optimistic, or when the time "
        "is spent: “not converged”. “Preempted”: the CPU time is under 90 % of the wall time, as others had the "
        "CPU. The interval speaks of this run alone: report several runs to see how far they are apart. On "
        "Linux, memory that was freed is kept from call to call, unless a flag says otherwise. On CUDA the span "
        "includes the launches of an eager run; a CUDA graph is timed by itself, after them. “/ matmul” is the "
        "time over that of a square matrix product in the same rounds (CPU: side 768, CPU times; CUDA: side 8192).",
        "A block is timed only after it has passed its correctness gate.",
    ),
    "step": (
        "Updates: one of the discriminator and one of the generator, on the same random images, timed in "
        "interleaved rounds as blocks are. MACs: of one forward of each network for a batch, blocks checked against "
        "their closed forms. Memory: predicted without the optimisers' states; the allocator's peak is with them.",
    ),
    "task": (
        "Scores: networks of one table differ in the block alone. Of one seed all have the same first weights "
        "outside the block, the same order of images and the same augmentation. The last checkpoint is scored, "
        "not the best one.",
        "The score of a block is the mean over its seeds, and “seeds from - to” their range: a difference "
        "within it is none. Rows of different protocol, data, network, machine or code are not in one table.",
        "CPU time: from the first iteration to the last with the evaluations between them, over all threads and "
        "the processes that load data.",
    ),
}
ENVIRONMENT = (
    ("device", "device_name"),
    ("CPU", "cpu"),
    ("threads", "threads"),
    ("torch", "torch"),
    ("CUDA", "cuda"),
    ("Python", "python"),
    ("ctxbench", "ctxbench_version"),
)
