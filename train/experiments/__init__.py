"""Experiments on the Shapes world. Nothing else in train imports them."""
