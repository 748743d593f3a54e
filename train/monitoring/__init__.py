"""Monitoring of a training run: metrics, plots, divergence guard."""
