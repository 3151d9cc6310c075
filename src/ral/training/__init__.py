"""The training loop, and what it does around each optimiser step."""
