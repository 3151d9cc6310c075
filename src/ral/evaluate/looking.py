"""Attention maps of the row that predicts the answer, in every decoder layer.

This is the row that *predicts* the first token of the answer. In `<think>…</think><answer>blue</answer>` it is the row of
`<answer>`'s last token. In a direct answer it is the row of the prompt's last token. A mean over all rows of a completion would
mostly show how the model writes the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ral.attention import Prompt, forward_groups
from ral.attention.models import attention_layers, decoder_layers, make_capturable
from ral.errors import DataError
from ral.families.tiles import raster


@dataclass(frozen=True)
class LayerLook:
    """One layer's attention on the visual tokens, or on those of a document, the mean of some or all of its heads.

    maps: a grid [h, w] of weights for every image and for every temporal patch of a video, images first, or [1, N] for a
    document; they are shares of the *whole* row, so that they sum to `visual_share`. heads: the same of every head, where
    it was asked for.
    """

    maps: tuple[NDArray[np.float64], ...]
    heads: tuple[LayerLook, ...] = ()

    @property
    def visual_share(self) -> float:
        """Attention on the visual tokens (or the document's), in [0, 1]; the rest is on other text."""
        return float(sum(map_.sum() for map_ in self.maps))


@dataclass(frozen=True)
class Look:
    """Attention of the row that predicts completion token `token`.

    layers: of every decoder layer the mean of all heads; None where a layer has no attention. chosen: of the heads that were asked
    for, in their layer; None without such.
    """

    token: int
    layers: tuple[LayerLook | None, ...]
    chosen: LayerLook | None = None

    def at(self, layer: int) -> LayerLook:
        """What is reported: the chosen heads, or else the mean of all heads in this layer, which has attention."""
        found = self.chosen or self.layers[layer]
        assert found is not None
        return found


@torch.no_grad()
def look(
    model: nn.Module,
    prompts: Sequence[Prompt],
    completions: Sequence[Tensor],
    tokens: Sequence[int],
    per_head: bool = False,
    documents: Sequence[slice | None] | None = None,
    heads: Mapping[int, Sequence[int]] | None = None,
) -> list[Look]:
    """Maps of the rows that predict token `tokens[i]` of `completions[i]` [R_i] after `prompts[i]`, in one forward pass.

    Of a prompt with a document, the tokens of `documents[i]`, the one map [1, N] is on those. `heads` are the chosen ones of one
    layer. Raises DataError for a prompt with neither document nor visual tokens.
    """
    base = make_capturable(model)
    layers, depth = attention_layers(base), len(decoder_layers(base))
    ((at, wanted),) = heads.items() if heads else ((0, ()),)
    # Only one row of each completion is wanted: what precedes its token joins the prompt, and the token stands alone.
    extended = [_extended(p, ids[:token]) for p, ids, token in zip(prompts, completions, tokens, strict=True)]
    targets = [[ids[token : token + 1]] for ids, token in zip(completions, tokens, strict=True)]
    every = per_head or bool(wanted)
    outputs = forward_groups(model, extended, targets, layers=layers, query="predictor", per_head=every)
    documents = documents or [None] * len(prompts)
    found = []
    for token, prompt, document, output in zip(tokens, prompts, documents, outputs, strict=True):
        looks: list[LayerLook | None] = [None] * depth
        for layer in layers:
            rows = output.heads[layer][:, 0, 0] if per_head else ()
            looks[layer] = LayerLook(
                _maps(output.alpha(layer)[0, 0], prompt, document),
                tuple(LayerLook(_maps(row, prompt, document)) for row in rows),
            )
        of_heads = output.heads[at][list(wanted), 0, 0].mean(dim=0) if wanted else None
        chosen = None if of_heads is None else LayerLook(_maps(of_heads, prompt, document))
        found.append(Look(token, tuple(looks), chosen))
    return found


@torch.no_grad()
def look_on(model: nn.Module, prompts: Sequence[Prompt]) -> list[dict[int, NDArray[np.float64]]]:
    """Attention of every text token after the last visual one: weights `[rows, N]` per prompt and layer with attention.

    The last row is that of the prompt's last token, which predicts the first of an answer; N counts the visual tokens in
    the order of the maps. Raises DataError for a prompt without visual tokens, or without text after them.
    """
    layers = attention_layers(make_capturable(model))
    parts = [prompt_and_rest(prompt) for prompt in prompts]
    outputs = forward_groups(model, [first for first, _ in parts], [[rest] for _, rest in parts], layers=layers)
    return [
        {layer: output.alpha(layer)[0][:, prompt.places].double().cpu().numpy() for layer in layers}
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def prompt_and_rest(prompt: Prompt, cut: int | None = None) -> tuple[Prompt, Tensor]:
    """`prompt` up to token `cut`, and the tokens after it; the default cut is after the last visual token and its closing tokens.

    As a completion they are queries of their own, whose rows are captured and can be biased.
    """
    if cut is None:
        _require_tiles(prompt)
        cut = int(prompt.visual.nonzero().max()) + 2
    if not cut < len(prompt.input_ids):
        raise DataError("no text follows the prompt's visual tokens, so that no token can look back at them")
    first = replace(
        prompt,
        input_ids=prompt.input_ids[:cut],
        position_ids=prompt.position_ids[..., :cut],
        together=None if prompt.together is None else prompt.together[:cut],
    )
    return first, prompt.input_ids[cut:]


def as_maps(weights: NDArray, prompt: Prompt) -> tuple[NDArray, ...]:
    """Values of the visual tokens `[N]` as a map of every picture of `prompt`: where it is cut into tiles, on the finest grid."""
    return raster(weights, prompt.tiles)


def unseen(prompt: Prompt) -> tuple[NDArray[np.bool_], ...]:
    """In the shapes of `as_maps`: the cells of each picture that no visual token shows, because the processor crops it."""
    return tuple(map_ == 0 for map_ in as_maps(np.ones(len(prompt.places)), prompt))


def _require_tiles(prompt: Prompt) -> None:
    if not len(prompt.places):
        raise DataError("the prompt has no visual tokens: there is nothing to look at")
    if not prompt.tiles:
        raise DataError(
            "which pixels the visual tokens of this model stand for is not known, so there is no map to look at"
        )


def _extended(prompt: Prompt, ids: Tensor) -> Prompt:
    """`prompt` with the completion tokens `ids` appended."""
    ids = ids.to(prompt.input_ids.device)
    own = torch.arange(len(ids), device=ids.device) + prompt.next_position
    return replace(
        prompt,
        input_ids=torch.cat([prompt.input_ids, ids]),
        position_ids=torch.cat([prompt.position_ids, own.expand(*prompt.position_ids.shape[:-1], -1)], dim=-1),
        together=None if prompt.together is None else torch.nn.functional.pad(prompt.together, (0, len(ids)), value=-1),
    )


def _maps(row: Tensor, prompt: Prompt, document: slice | None) -> tuple[NDArray[np.float64], ...]:
    """The weights of one row `[P + …]` on a document, or on the grids of `prompt`."""
    if document is not None:
        return (row[None, document].double().cpu().numpy(),)
    _require_tiles(prompt)
    return as_maps(row[prompt.places].double().cpu().numpy(), prompt)
