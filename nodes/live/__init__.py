"""Nodes that write a video while it is made."""
