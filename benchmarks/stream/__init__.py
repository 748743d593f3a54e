"""What a viewer of a live session gets: `python -m benchmarks stream`, a real server and simulated viewers."""
