"""One stream over several processes: attention and memory split by heads."""
