"""Speed and memory benchmarks, each compared with a baseline that runs in the same process."""
