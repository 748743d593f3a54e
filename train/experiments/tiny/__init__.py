"""Builds salt-tiny, the embedded model: VAE, teachers and student."""
