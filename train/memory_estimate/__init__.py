"""Memory of a recipe, estimated before anything is loaded."""
