"""Rollouts for training: with gradient, as alignment references, and whole clips under a block-causal mask."""
