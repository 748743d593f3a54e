"""GPU and host memory of a recipe, estimated before any checkpoint is loaded."""
