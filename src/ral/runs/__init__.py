"""Run folders: their files, trustworthy checkpoints, exact resume, interruption."""
