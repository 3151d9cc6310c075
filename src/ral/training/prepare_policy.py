"""Prepares the policy for training."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from ral.attention.flex import refuse_untrainable
from ral.attention.heads import heads_of
from ral.attention.models import make_capturable, resolve_layers
from ral.config import RALConfig
from ral.models.adapters import put_adapter
from ral.models.loading import freeze_vision, load_model, refuse_adapter_of_frozen_vision, training_dtype
from ral.models.noise import switch_off_noise
from ral.testbed import model_name


def prepare_policy(
    model: PreTrainedModel | PeftModel | str | Path, args: RALConfig, peft_config: PeftConfig | None = None
) -> nn.Module:
    """Freeze the vision tower, add the adapter and switch off noise, as the settings say. Loads the model if given by name.

    Raises ValueError for layers that the model does not have, ConfigError for what the settings forbid, and what loading raises.
    """
    if isinstance(model, str | Path):
        model = load_model(model_name(str(model)), dtype=training_dtype(adapter=peft_config is not None))
    policy: nn.Module = model
    base = make_capturable(policy)
    layers = resolve_layers(base, args.attention_layers)  # refuses layers that the model does not have
    if not isinstance(args.attention_heads, dict):
        heads_of(base, layers, args.attention_heads)  # and heads
    if args.attention_kernel == "flex":
        refuse_untrainable(args.device)
    if args.freeze_vision:
        freeze_vision(base)
    if peft_config is not None:
        policy = put_adapter(base, peft_config, args.seed)
        refuse_adapter_of_frozen_vision(base, args.freeze_vision)
    if args.disable_dropout:
        switch_off_noise(policy)
    return policy
