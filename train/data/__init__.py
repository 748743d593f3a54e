"""Data of a run: micro-batches, prompts, clip datasets, and what is precomputed for them."""
