"""Evaluation: benchmarks, metrics, and grounding of attention in boxes."""
