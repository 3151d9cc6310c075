"""The folder of a run: what it holds, checkpoints that can be trusted, an exact resume, interruption."""
