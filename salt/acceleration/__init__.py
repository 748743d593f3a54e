"""Acceleration of the pipeline: presets, CUDA graphs, the choice of the device, and what is free on it."""
