"""Solvers of a block: what is done with the model's flow at each step."""
