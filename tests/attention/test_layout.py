"""The packed row's bookkeeping against a naive construction with one label per token."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import CausalBias
from torch.nn.functional import scaled_dot_product_attention

from ral.attention.layout import GroupLayout, PackedLayout
from ral.attention.sight import Sight

GROUPS = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)), min_size=1, max_size=3
).map(lambda groups: tuple(GroupLayout(*group) for group in groups))
CPU = torch.device("cpu")


def labels(layout: PackedLayout) -> list[tuple[int, int, int]]:
    """(group, completion or -1 for the prompt, offset) of every token in the row."""
    found = []
    for g, group in enumerate(layout.groups):
        found += [(g, -1, i) for i in range(group.prompt_length)]
        found += [(g, y, i) for y, length in enumerate(group.lengths) for i in range(length)]
    return found


@given(GROUPS)
@settings(max_examples=60)
def test_every_token_is_predicted_by_the_one_before_it_in_its_own_sequence(groups: tuple[GroupLayout, ...]) -> None:
    layout = PackedLayout(groups)
    tokens = labels(layout)
    assert layout.total == sum(layout.split_sizes) == len(tokens)
    expected = [
        tokens.index((g, y, i - 1) if i else (g, -1, groups[g].prompt_length - 1)) for g, y, i in tokens if y >= 0
    ]
    assert layout.predictors() == expected


@given(GROUPS)
@settings(max_examples=60)
def test_completion_tokens_see_their_prompt_and_their_own_past(groups: tuple[GroupLayout, ...]) -> None:
    layout = PackedLayout(groups)
    tokens = labels(layout)
    for g, (group, masks) in enumerate(zip(groups, layout.block_masks(0, CPU, torch.float32), strict=True)):
        for block, mask in zip(group.blocks, masks, strict=True):
            members = range(len(group.lengths))[block]
            keys = [token for token in tokens if token[0] == g and (token[1] == -1 or token[1] in members)]
            queries = [token for token in keys if token[1] >= 0]
            expected = [[key[1] == -1 or (key[1] == y and key[2] <= i) for key in keys] for _, y, i in queries]
            assert (mask == 0).tolist() == expected
            assert torch.isneginf(mask[mask != 0]).all()


@given(st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=9).map(tuple))
def test_blocks_hold_every_completion_once_and_stay_under_a_quarter_of_the_prompt(
    prompt_length: int, lengths: tuple[int, ...]
) -> None:
    blocks = [lengths[block] for block in GroupLayout(prompt_length, lengths).blocks]
    assert tuple(length for block in blocks for length in block) == lengths
    assert all(len(block) == 1 or 4 * sum(block) <= prompt_length for block in blocks)
    assert all(4 * (sum(a) + b[0]) > prompt_length for a, b in pairwise(blocks))


@given(GROUPS)
@settings(max_examples=60)
def test_grid_turns_ragged_into_padded(groups: tuple[GroupLayout, ...]) -> None:
    for group in groups:
        index, mask = group.grid(CPU)
        assert index.shape == mask.shape == (len(group.lengths), max(group.lengths))
        ragged = [(y, i) for y, length in enumerate(group.lengths) for i in range(length)]
        for y, length in enumerate(group.lengths):
            assert mask[y].tolist() == [i < length for i in range(max(group.lengths))]
            assert [ragged[j] for j in index[y, :length]] == [(y, i) for i in range(length)]
            assert not index[y, length:].any()


@given(GROUPS, st.data())
@settings(max_examples=40)
def test_look_bias_is_added_on_the_prompt_of_its_own_completion(
    groups: tuple[GroupLayout, ...], data: st.DataObject
) -> None:
    biases = [
        torch.randn(len(group.lengths), group.prompt_length) if data.draw(st.booleans()) else None for group in groups
    ]
    layout = PackedLayout(groups, biases, bias_layers=(1,))
    plain, biased = (layout.block_masks(layer, CPU, torch.float32) for layer in (0, 1))
    for group, bias, without, masks in zip(groups, biases, plain, biased, strict=True):
        owner = [y for y, length in enumerate(group.lengths) for _ in range(length)]
        expected = torch.zeros(len(owner), group.prompt_length) if bias is None else bias[owner]
        assert torch.equal(torch.cat([mask[:, : group.prompt_length] for mask in masks]), expected)
        for mask, zero in zip(masks, without, strict=True):
            assert torch.equal(mask[:, group.prompt_length :], zero[:, group.prompt_length :])


@given(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_lone_completion_is_causal_to_the_lower_right_where_kernels_know_it(
    prompt_length: int, lengths: tuple[int, ...], seed: int
) -> None:
    group = GroupLayout(prompt_length, lengths)
    generator = torch.Generator().manual_seed(seed)
    for block in group.blocks:
        if block.stop - block.start > 1:
            continue
        named, matrix = (group.block_mask(block, None, device, torch.float32) for device in (torch.device("cuda"), CPU))
        assert isinstance(named, CausalBias)
        tokens, keys = matrix.shape
        q, k, v = (torch.randn(1, 2, n, 4, generator=generator) for n in (tokens, keys, keys))
        ours, theirs = (scaled_dot_product_attention(q, k, v, attn_mask=mask) for mask in (named, matrix))
        torch.testing.assert_close(ours, theirs)


def test_a_biased_or_shared_block_keeps_its_matrix() -> None:
    group, gpu = GroupLayout(40, (3, 4, 30)), torch.device("cuda")
    assert group.blocks == (slice(0, 2), slice(2, 3))
    assert isinstance(group.block_mask(group.blocks[1], None, gpu, torch.float32), CausalBias)
    biased = group.block_mask(group.blocks[1], torch.zeros(3, 40), CPU, torch.float32)
    assert type(biased) is torch.Tensor
    assert biased.shape == (30, 70)


def test_prompt_tokens_see_what_stands_before_them_and_their_own_image() -> None:
    """Two images of tokens that see each other, under a window of three or without one."""
    images = torch.tensor([-1, 0, 0, 0, -1, 1, 1, -1])
    together = GroupLayout(8, (2,), images)
    for sight, reach in ((Sight(), 8), (Sight(window=3), 3)):
        mask = together.prompt_mask(sight, CPU)
        assert mask is not None
        for q in range(8):
            for k in range(8):
                same = images[q] >= 0 and images[q] == images[k]
                assert bool(mask[q, k]) == ((k <= q or same) and q - k < reach), (q, k)
    alone = GroupLayout(8, (2,))
    assert alone.prompt_mask(Sight(), CPU) is None
    assert alone.prompt_mask(Sight(window=8), CPU) is None
    windowed = alone.prompt_mask(Sight(window=3), CPU)
    assert windowed is not None
    assert windowed.equal(torch.ones(8, 8).tril().triu(-2).bool())
