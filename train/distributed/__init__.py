"""Several processes: launch modes, replicated and sharded models, weight averages, checkpoints, recomputation."""
