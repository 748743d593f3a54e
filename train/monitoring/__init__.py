"""What a run reports: metrics, plots, and the guard that ends a diverged run."""
