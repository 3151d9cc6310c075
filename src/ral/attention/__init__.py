"""The packed prompt group and the attention captured from it."""

from ral.attention.forward import GroupOutput, Prompt, forward_group, forward_groups, prepare_prompt
from ral.attention.keys import select_keys, visual_share
from ral.attention.models import UnsupportedModelError, vision_features

__all__ = [
    "GroupOutput",
    "Prompt",
    "UnsupportedModelError",
    "forward_group",
    "forward_groups",
    "prepare_prompt",
    "select_keys",
    "vision_features",
    "visual_share",
]
