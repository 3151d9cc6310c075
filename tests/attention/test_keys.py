"""Selections of keys, and the visual share."""

from __future__ import annotations

import pytest
import torch

from ral.attention import forward_group, prepare_prompt, select_keys, visual_share
from ral.attention.rows import policy_rows
from tests.tiny import completions, prompt, tiny_model

# One completion of two tokens behind a prompt of three, of which the second and third are visual.
ROWS = torch.tensor([[[0.5, 0.2, 0.3, 0.0, 0.0], [0.1, 0.3, 0.2, 0.4, 0.0]]])
VISUAL = torch.tensor([False, True, True])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("all", [[0.5, 0.2, 0.3, 0.0, 0.0], [0.1, 0.3, 0.2, 0.4, 0.0]]),
        ("prompt", [[0.5, 0.2, 0.3], [1 / 6, 1 / 2, 1 / 3]]),
        ("visual", [[0.4, 0.6], [0.6, 0.4]]),
    ],
)
def test_rows_are_renormalised_over_the_selection(keys: str, expected: list[list[float]]) -> None:
    torch.testing.assert_close(select_keys(ROWS, keys, 3, VISUAL)[0], torch.tensor(expected))


def test_padding_rows_stay_zero_with_finite_gradients() -> None:
    padded = torch.cat([ROWS, torch.zeros(1, 2, 5)]).requires_grad_()
    for keys in ("all", "prompt", "visual"):
        selected = select_keys(padded, keys, 3, VISUAL)
        assert not selected[1].any()
        [gradient] = torch.autograd.grad(selected.square().sum(), padded)
        assert torch.isfinite(gradient).all()


def test_visual_keys_without_visual_tokens_are_refused_with_what_to_change() -> None:
    with pytest.raises(ValueError, match=r'attention_keys="visual".*no visual tokens.*"prompt" or "all"'):
        select_keys(ROWS, "visual", 3, torch.zeros(3, dtype=torch.bool))


def test_visual_share_counts_real_tokens_only() -> None:
    rows = torch.cat([ROWS, torch.ones(1, 2, 5)])
    own = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    mask = torch.tensor([[True, True], [False, False]])
    assert visual_share(rows, own, mask, VISUAL) == pytest.approx((0.5 + 0.25) / 2)
    mask[1, 0] = True
    assert visual_share(rows, own, mask, VISUAL) == pytest.approx((0.5 + 0.25 + 1) / 3)


def test_on_a_model_visual_rows_are_the_policy_restricted_to_the_image() -> None:
    model, inputs = tiny_model(), prompt("image")
    out = forward_group(model, inputs, completions())
    visual = prepare_prompt(model, inputs).visual
    assert visual.sum() == 6
    rows = select_keys(out.attention, "visual", len(visual), visual)
    restricted = out.alpha(2)[..., : len(visual)][..., visual]
    expected = restricted / restricted.sum(-1, keepdim=True)
    torch.testing.assert_close(rows[out.mask], expected[out.mask])
    # The token itself is left out after the share is taken.
    torch.testing.assert_close(policy_rows(out.alpha(2), out.mask, len(visual)), out.attention)
    share = visual_share(out.attention, out.own[2], out.mask, visual)
    torch.testing.assert_close(share, restricted.sum(-1)[out.mask].mean())
