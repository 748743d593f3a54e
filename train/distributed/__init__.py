"""Training over processes: replicated and sharded models, averages, checkpoints, recomputation."""
