"""Switches off dropout and other noise, so that a ratio of 1 means an unchanged policy."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig

#: What the names of rates of noise hold: attention_dropout, resid_pdrop, drop_path_rate, layerdrop, router_jitter_noise.
_RATES = ("drop", "jitter")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def switch_off_noise(model: nn.Module) -> None:
    """Set every rate of dropout, dropped layers and jitter in the model's modules and configurations to 0.

    Not all rates are in `nn.Dropout`: layers, above all attention, also store them as numbers or read them from their
    configuration. The configuration is saved with the model, and then states the rates of the training.
    """
    for module in model.modules():
        _set_rates_to_zero(module)
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
        if isinstance(config := getattr(module, "config", None), PretrainedConfig):
            _set_rates_to_zero(config)


def _set_rates_to_zero(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if isinstance(value, float) and any(rate in name for rate in _RATES):
            setattr(holder, name, 0.0)
