"""ctxbench: what a global-context block of a vision network costs, measured the same way for all."""

__version__ = "0.1.0"
