"""Generates the shared workflow files: each is described in a few lines of Python and written as JSON and picture."""
