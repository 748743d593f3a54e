"""The recipe of salt-tiny, the embedded default: VAE, teacher, causal student, each one small module."""
