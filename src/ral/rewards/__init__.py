"""What completions earn: reward functions, and the scoring of answers they rest on."""

from ral.rewards.functions import RewardError, RewardFunction, build_rewards, of_record, score_group, well_formed

__all__ = ["RewardError", "RewardFunction", "build_rewards", "of_record", "score_group", "well_formed"]
