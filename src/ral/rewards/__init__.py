"""Rewards for completions, and the scorers that read and judge answers."""

from ral.rewards.functions import RewardError, RewardFunction, build_rewards, of_record, score_group, well_formed

__all__ = ["RewardError", "RewardFunction", "build_rewards", "of_record", "score_group", "well_formed"]
