"""The shapes world: a procedural data set whose captions can be checked exactly, and the bench that checks them."""
