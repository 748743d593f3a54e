"""Acceleration of the pipeline: presets, CUDA graphs, and the choice of the device."""
