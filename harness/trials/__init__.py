"""Load and inference trials, and the runner that keeps them in order."""
