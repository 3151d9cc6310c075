"""Benchmarks, their metrics, grounding of attention in boxes, and the statistics of comparing two models."""
