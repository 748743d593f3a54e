"""Speed and memory, always beside a peer run in the same process. Timings are ratios; nothing here is a test."""
