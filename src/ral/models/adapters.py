"""Adapters (PEFT): adds and loads them, and refuses those that would falsify the reference or the saved weights.

A run assumes that the model with its adapter switched off is the start model, and that the saved weights are the trained ones. Both
hold only if the adapter does not change the base model's weights, and if no adapted weight is used in a second place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from ral.errors import ConfigError, refused_by

#: Entries of a weight that are compared to see whether it was rewritten.
SAMPLED = 4096
#: A change below this share of the largest weight is rounding.
ROUNDING = 1e-5
#: Initialisations that rewrite the base model's weights, and do it the same way whenever the adapter is loaded.
_REPEATABLE = ("pissa", "olora")


def put_adapter(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """Add a new adapter to the model, with random weights from `seed`.

    Raises ConfigError: an initialisation that rewrites the base model's weights (PiSSA, OLoRA, CorDA, LoftQ), and what
    `refuse_adapted_ties` refuses.
    """
    before = list(_samples(model))
    if (name := model.name_or_path) and Path(name).is_dir():  # the adapter remembers it, and is loaded from anywhere
        model.name_or_path = str(Path(name).absolute())
    set_seed(seed)
    # transformers keeps the revision that a hub id stood for under this name alone.
    with refused_by("peft", "peft"):
        policy = get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
    if rewritten := _rewritten(before):
        raise ConfigError(
            f"init_lora_weights={getattr(config, 'init_lora_weights', None)!r} rewrites the weights of the base model "
            f"({rewritten[0]} and {len(rewritten) - 1} others): with the adapter off it would no longer be the start, which is "
            "the reference, and the saved adapter would fit no saved base model. Use true, gaussian, orthogonal or mica"
        )
    refuse_adapted_ties(policy)
    return policy  # type: ignore[return-value]  # of a task without a class of its own


def load_adapter(model: PreTrainedModel, folder: str, *, trainable: bool = False) -> PeftModel:
    """Add the saved adapter in `folder` to the model.

    Raises ConfigError: an adapter whose loading rewrites the base model's weights by chance or by data, which would not be
    those it was trained on; and what `refuse_adapted_ties` refuses.
    """
    before = list(_samples(model))
    with refused_by("peft", folder):
        policy = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    how = getattr(policy.active_peft_config, "init_lora_weights", None)
    if how not in _REPEATABLE and (rewritten := _rewritten(before)):
        raise ConfigError(
            f"{folder}: init_lora_weights={how!r} rewrites the weights of the base model ({rewritten[0]} …) whenever the "
            "adapter is loaded, and not to what it was trained on; convert it to a plain adapter where it was made "
            "(save_pretrained of PEFT with path_initial_model_for_weight_conversion)"
        )
    refuse_adapted_ties(policy)
    return policy


def refuse_adapted_ties(policy: nn.Module) -> None:
    """Raise ConfigError where an adapted weight is used in a second place, too, as tied embeddings are.

    The adapter trains one use of the weight, and is merged into both.
    """
    places: dict[int, list[str]] = defaultdict(list)
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
    adapted = [
        f"{name}."
        for name, module in policy.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    ]
    for shared in places.values():
        touched = [name for name in shared if name.startswith(tuple(adapted))]
        if len(shared) > 1 and touched:
            raise ConfigError(
                f"the adapter is on {_plain(touched[0])}, whose weight is tied to "
                f"{', '.join(sorted({_plain(name) for name in shared} - {_plain(touched[0])})) or 'another use of it'}: it would "
                "train one use of the weight and be merged into both. Leave it out of target_modules and modules_to_save"
            )


def leaves_start(policy: PeftModel) -> bool:
    """Whether the policy with its adapter off is, now and while it is trained, the policy as it is now.

    It is not where weights of the base model are trained beside the adapter (`bias: all`, `lora_only`), nor where the adapter
    already says something, as one that was trained before.
    """
    modules = list(policy.modules())
    parts = [module for module in modules if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    of_adapter = {id(p) for module in parts for p in _own_parameters(module)}
    if any(p.requires_grad and id(p) not in of_adapter for p in policy.parameters()):
        return False
    return all(_says_nothing(module) for module in parts)


@torch.no_grad()
def _says_nothing(module: nn.Module) -> bool:
    if isinstance(module, ModulesToSaveWrapper):
        original = dict(module.original_module.named_parameters())
        saved = [dict(module.modules_to_save[name].named_parameters()) for name in module.active_adapters]
        return all(torch.equal(original[key], copy[key]) for copy in saved for key in original)
    if not hasattr(module, "get_delta_weight"):
        return False
    # Orthogonal initialisation is 0 but for rounding.
    noticed = ROUNDING * module.get_base_layer().weight.abs().max()  # type: ignore[operator, union-attr]
    return all(bool((module.get_delta_weight(name).abs() <= noticed).all()) for name in module.active_adapters)  # type: ignore[operator, union-attr]


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that the adapter adds to a module: all but those of the wrapped module."""
    wrapped = module.original_module if isinstance(module, ModulesToSaveWrapper) else module.get_base_layer()  # type: ignore[operator]
    inside = {id(p) for p in wrapped.parameters()}  # type: ignore[union-attr]
    return (p for p in module.parameters() if id(p) not in inside)


def _samples(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Every matrix with some of its entries, as they are now. Biases may be an adapter's own, and lie in its file."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            yield name, parameter, _sample(parameter)


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLED)].nan_to_num()  # weights that another process reads may be anything


def _rewritten(before: list[tuple[str, nn.Parameter, Tensor]]) -> list[str]:
    return [name for name, parameter, sample in before if not torch.equal(_sample(parameter), sample)]


def _plain(name: str) -> str:
    """The module of a weight, as the model names it without its adapter."""
    for wrapper in ("base_model.model.", ".base_layer", ".original_module"):
        name = name.replace(wrapper, "", 1)
    return name.rpartition(".")[0]
