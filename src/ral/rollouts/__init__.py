"""Rollouts: groups of completions, sampled by the policy itself or by a server."""
