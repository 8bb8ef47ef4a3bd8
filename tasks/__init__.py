"""Downstream tasks in which a block is trained and scored. Imports `blocks` alone."""
