"""Gradient norms of the losses by exit step, beside DMD's."""
