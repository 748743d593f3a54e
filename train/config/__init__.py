"""Recipes: their dataclasses, reading, validation, and the model configurations they name."""
