"""What makes a pipeline faster or smaller: presets, CUDA graphs, and the choice of the device."""
