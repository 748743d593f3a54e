"""Training data: prompts and batches, clip datasets, video encoding, and what is computed beforehand."""
