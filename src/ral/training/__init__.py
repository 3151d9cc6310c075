"""The training loop, and everything around an optimiser step."""
