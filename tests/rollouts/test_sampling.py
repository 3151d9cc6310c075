"""Sampling against transformers' own `generate`, against the softmax it draws from, and against the packed forward."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from ral.attention import Prompt, flash, forward_groups, prepare_prompt
from ral.attention.models import special_visual_token_ids
from ral.rollouts import batch, graphs, sampling
from ral.rollouts.batch import Entry, Part
from ral.rollouts.group import draw_look_bias
from ral.rollouts.sampling import Completion, Sampling, _draw, eos_token_ids, sample, stream
from ral.testbed.model import build_tokenizer
from tests.families.trained import as_trained
from tests.tiny import EOS, IMAGE, TEXT, TEXT_KINDS, VIDEO, VISION_END, VISION_KINDS, VISION_START, prompt, tiny_model

LONGEST = 8
GREEDY = Sampling(LONGEST, (EOS,), temperature=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(prompts: Sequence[Prompt], seed: int = 0) -> list[torch.Generator]:
    """A generator for every prompt."""
    return [seeded(seed + 10 * i) for i in range(len(prompts))]


def video(model: str = "qwen2_5_vl", words_behind: int = 8) -> dict[str, Tensor]:
    """A video with enough text behind it that the last token also has the largest position, as `generate` assumes."""
    inputs = prompt("video", model=model)
    tail = torch.arange(1, words_behind + 1)[None]
    for name, values in (("input_ids", tail), ("attention_mask", tail > 0), ("mm_token_type_ids", tail * 0)):
        inputs[name] = torch.cat([inputs[name], values.to(inputs[name].dtype)], dim=1)
    return inputs


INPUTS = {"image": prompt("image"), "images": prompt("images"), "text": prompt("text"), "video": video()}


def generated(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[int]:
    """What transformers generates greedily under the same ban."""
    banned = list(special_visual_token_ids(model))
    if model.config.model_type == "qwen2_vl":  # knows no frame rate
        inputs = {name: values for name, values in inputs.items() if name != "second_per_grid_ts"}
    out = model.generate(
        **as_trained(model.config, inputs),
        max_new_tokens=LONGEST,
        do_sample=False,
        eos_token_id=EOS,
        suppress_tokens=banned or None,
    )
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def ids(completions: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in completions]


@pytest.mark.parametrize("media", INPUTS)
@pytest.mark.parametrize("kind", VISION_KINDS)
def test_greedy_is_generate_on_vision_models(kind: str, media: str) -> None:
    model = tiny_model(kind)
    inputs = video(kind) if media == "video" else INPUTS[media]
    expected = generated(model, inputs)
    found = sample(model, [prepare_prompt(model, inputs)], 3, GREEDY)
    assert ids(found) == [[expected] * 3]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_greedy_is_generate_on_text_models(kind: str) -> None:
    model = tiny_model(kind)
    expected = generated(model, INPUTS["text"])
    assert ids(sample(model, [prepare_prompt(model, INPUTS["text"])], 2, GREEDY)) == [[expected] * 2]


def test_prompts_of_every_kind_in_one_batch_get_what_they_get_alone() -> None:
    model = tiny_model()
    prompts = [prepare_prompt(model, inputs) for inputs in INPUTS.values()]
    assert len({len(p.input_ids) for p in prompts}) == 4
    together = ids(sample(model, prompts, 2, GREEDY))
    assert together == [ids(sample(model, [p], 2, GREEDY))[0] for p in prompts]
    assert together == [[generated(model, inputs)] * 2 for inputs in INPUTS.values()]


def test_a_seed_gives_the_same_completions_whatever_leaves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    prompts = [prepare_prompt(model, INPUTS[kind]) for kind in ("image", "text")]
    sampling = Sampling(12, (EOS, *range(15)), temperature=1.3)  # many ends, so that rows leave early
    found = {}
    for share in (0.0, 0.25, 2.0):
        monkeypatch.setattr("ral.rollouts.batch.DROP_SHARE", share)
        found[share] = ids(sample(model, prompts, 6, sampling, each(prompts)))
    lengths = {len(y) for group in found[0.0] for y in group}
    assert len(lengths) > 3
    assert found[0.0] == found[0.25] == found[2.0]
    assert ids(sample(model, prompts, 6, sampling, each(prompts, 1))) != found[0.0]


@pytest.mark.parametrize("biased", [False, True])
def test_completions_are_the_same_however_many_are_in_the_batch(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of every length enter as rows end, with a bias of each row that moves its tokens."""
    model = tiny_model()
    kinds = ("image", "text", "images", "video", "text", "image", "mixed")
    prompts = [prepare_prompt(model, prompt(kind, seed=i, words=3 + 4 * i)) for i, kind in enumerate(kinds)]
    looks = [draw_look_bias(p, 3, 4.0, seeded(i)) for i, p in enumerate(prompts)] if biased else None
    settings = Sampling(12, (EOS, *range(15)), temperature=1.3)
    parts: list[int] = []
    advance = graphs.advance
    monkeypatch.setattr(graphs, "advance", lambda model, batch: parts.append(len(batch)) or advance(model, batch))

    def found(rows: int | None) -> list[list[list[int]]]:
        parts.clear()
        return ids(sample(model, prompts, 3, settings, each(prompts), looks, rows=rows))

    expected = found(None)
    assert set(parts) == {1}
    assert len({len(y) for group in expected for y in group}) > 5
    assert not biased or expected != ids(sample(model, prompts, 3, settings, each(prompts)))
    for rows in (1, 3, 7, 9, 20):
        assert found(rows) == expected, rows
        assert max(parts) > 1 or rows < 6, "new prompts enter beside others"
    alone = [
        ids(sample(model, [p], 3, settings, [g], None if looks is None else [looks[i]]))[0]
        for i, (p, g) in enumerate(zip(prompts, each(prompts), strict=True))
    ]
    assert alone == expected


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mistral"])
def test_with_memory_allocated_before_it_is_used_completions_are_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs: every step of a batch has the same shapes, and writes into the same memory until that is used up."""
    sliding = kind == "mistral"
    model = mistral(window=9) if sliding else tiny_model(kind)
    kinds = ["text"] * 5 if sliding else ["image", "text", "images", "video", "text"]
    prompts = [prepare_prompt(model, prompt(k, seed=i, words=3 + 4 * i)) for i, k in enumerate(kinds)]
    looks = [draw_look_bias(p, 3, 4.0, seeded(i)) for i, p in enumerate(prompts)]
    settings = Sampling(12, (EOS, *range(15)), temperature=1.3)

    def found() -> list[list[list[int]]]:
        return ids(sample(model, prompts, 3, settings, each(prompts), looks, rows=7))

    expected, memory = found(), []
    monkeypatch.setattr(batch, "ALLOCATED_ON", {"cpu"})
    monkeypatch.setattr(batch, "ROOM", 5)  # more is made room for on the way
    advance = graphs.advance

    def watched(model: Any, parts: Sequence[Part]) -> None:
        advance(model, parts)
        memory.append([(p.prefix, p.prefix.own[0].keys.data_ptr(), p.prefix.own[0].keys.shape[2]) for p in parts])

    monkeypatch.setattr(graphs, "advance", watched)
    assert found() == expected
    assert {room for step in memory for _, _, room in step} == {5, 10, 12}
    held: dict[int, int] = {}
    for prefix, address, _ in (one for step in memory for one in step):
        assert held.setdefault(id(prefix), address) == address
    assert len(held) < len(memory), "steps share their memory"


def varlen(
    query: Tensor, key: Tensor, value: Tensor, starts_q: Tensor, starts_k: Tensor, most_q: int, most_k: int, *,
    return_aux: Any, scale: float, enable_gqa: bool, seqused_k: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` computes, sequence by sequence."""
    outputs, sums = torch.empty_like(query), torch.empty(query.shape[1], len(query))
    assert enable_gqa
    assert {starts_q.dtype, starts_k.dtype, seqused_k.dtype} == {torch.int32}
    for i, used in enumerate(seqused_k.tolist()):
        rows, first = slice(*starts_q[i : i + 2].tolist()), int(starts_k[i])
        assert rows.stop - rows.start <= most_q
        assert used <= min(most_k, int(starts_k[i + 1]) - first)
        keys, values = (
            x[first : first + used].repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query[rows], keys) * scale
        sums[:, rows] = scores.logsumexp(dim=-1)
        outputs[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values)
    return outputs, sums


def test_a_flash_kernel_on_prompts_and_on_their_completions_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself, which no CPU has, is written out here; `tests/attention/test_gpu.py` runs it."""
    model = tiny_model()
    kinds = ["image", "text", "images", "video", "text"]
    prompts = [prepare_prompt(model, prompt(k, seed=i, words=3 + 4 * i)) for i, k in enumerate(kinds)]
    settings = Sampling(12, (EOS, *range(15)), temperature=1.3)
    expected = ids(sample(model, prompts, 3, settings, each(prompts), rows=7))
    used: list[int] = []
    monkeypatch.setattr(batch, "ALLOCATED_ON", {"cpu"})
    monkeypatch.setattr(batch, "ROOM", 5)
    monkeypatch.setattr(flash, "usable", lambda values: True)
    monkeypatch.setattr(flash, "varlen_attn", lambda *a, **named: used.append(len(a[0])) or varlen(*a, **named))
    assert ids(sample(model, prompts, 3, settings, each(prompts), rows=7)) == expected
    assert used


def mistral(window: int) -> PreTrainedModel:
    torch.manual_seed(0)
    text = {name: value for name, value in TEXT.items() if name != "bos_token_id"}
    return MistralForCausalLM(MistralConfig(**text, sliding_window=window)).eval()


def test_prompts_are_taken_as_there_is_room_and_leave_as_they_end() -> None:
    """Of a stream, one prompt more is taken than is decoded: here at most 8, with one row each, and a quarter of a batch is 1."""
    model = tiny_model()
    prompts = [prepare_prompt(model, prompt("text", seed=i, words=5 + i)) for i in range(20)]
    settings = Sampling(12, (EOS, *range(25)), temperature=1.3)
    expected = ids(sample(model, prompts, 2, settings, each(prompts)))
    taken, left, most = [], [], 0

    def source() -> Any:
        for i, (one, generator) in enumerate(zip(prompts, each(prompts), strict=True)):
            taken.append(i)
            yield Entry(i, one, generator)

    found = {}
    for entry, completions in stream(model, source(), 2, settings, lambda longest: 8):
        left.append(entry.number)
        most = max(most, len(taken) - len(left) + 1)  # with the one that leaves here
        found[entry.number] = [completion.ids.tolist() for completion in completions]
    assert [found[i] for i in range(20)] == expected
    assert left != sorted(left), "who ends first leaves first"
    assert most <= 8 + 1


def test_no_more_rows_are_in_the_batch_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    prompts = [prepare_prompt(model, prompt("text", seed=i, words=5 + i)) for i in range(9)]
    sizes, lengths = [], []
    advance, prefill = graphs.advance, sampling.prefill

    def entering(model: Any, entries: list[Entry], *others: Any) -> Any:
        lengths.append([entry.length for entry in entries])
        return prefill(model, entries, *others)

    monkeypatch.setattr(
        graphs, "advance", lambda model, batch: sizes.append(sum(p.size for p in batch)) or advance(model, batch)
    )
    monkeypatch.setattr(sampling, "prefill", entering)
    sample(model, prompts, 4, Sampling(12, (EOS, *range(25)), temperature=1.3), each(prompts), rows=13)
    assert max(sizes) == 12
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True), "like lengths enter together"
    assert len(lengths) > 2


def first_tokens(model: PreTrainedModel, sampling: Sampling, n: int = 4000) -> Tensor:
    """`[V]` how often each token came first."""
    inputs = {"input_ids": INPUTS["text"]["input_ids"]}
    [group] = sample(
        model, [prepare_prompt(model, inputs)], n, dataclasses.replace(sampling, max_completion_length=1), [seeded()]
    )
    return torch.bincount(torch.cat([completion.ids for completion in group]), minlength=100)


def first_distribution(model: PreTrainedModel, temperature: float) -> Tensor:
    with torch.no_grad():
        return (model(input_ids=INPUTS["text"]["input_ids"]).logits[0, -1].double() / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_the_first_token_is_drawn_from_the_softmax(temperature: float) -> None:
    model = tiny_model("llama")
    counts = first_tokens(model, Sampling(1, (EOS,), temperature=temperature))
    expected = first_distribution(model, temperature) * counts.sum()
    common = expected >= 5
    observed, predicted = counts[common].tolist(), expected[common].tolist()
    if expected[~common].any():
        observed, predicted = [*observed, int(counts[~common].sum())], [*predicted, float(expected[~common].sum())]
    assert chisquare(observed, predicted).pvalue > 1e-3


def test_top_k_and_top_p_cut_the_tail() -> None:
    model = tiny_model("llama")
    p, order = first_distribution(model, 1.0).sort(descending=True)
    for k in (1, 3, 10):
        drawn = first_tokens(model, Sampling(1, (EOS,), top_k=k)).nonzero()[:, 0]
        assert set(drawn.tolist()) == set(order[:k].tolist())
    for mass in (0.2, 0.5):
        nucleus = order[: int((p.cumsum(0) < mass).sum()) + 1]
        drawn = first_tokens(model, Sampling(1, (EOS,), top_p=mass)).nonzero()[:, 0]
        assert set(drawn.tolist()) == set(nucleus.tolist())


def test_min_p_keeps_tokens_of_a_share_of_the_likeliest() -> None:
    model = tiny_model("llama")
    p = first_distribution(model, 1.0)
    for share in (0.3, 0.8):
        drawn = first_tokens(model, Sampling(1, (EOS,), min_p=share)).nonzero()[:, 0]
        assert set(drawn.tolist()) == set((p >= share * p.max()).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_counts_prompt_and_completion_as_in_generate(penalty: float) -> None:
    """Prompts of other lengths in one batch, of which rows leave; below 1 the model repeats itself more."""
    model = tiny_model("llama")
    generator = seeded()
    asked = [torch.randint(3, 90, (1, n), generator=generator) for n in (4, 9, 6)]
    prompts = [prepare_prompt(model, {"input_ids": ids}) for ids in asked]
    sampled = sample(model, prompts, 2, Sampling(12, (EOS,), temperature=0, repetition_penalty=penalty))
    plain = sample(model, prompts, 2, Sampling(12, (EOS,), temperature=0))
    for ids, (first, second) in zip(asked, sampled, strict=True):
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=EOS,
            pad_token_id=0, repetition_penalty=penalty,
        )[0, ids.shape[1] :]  # fmt: skip
        assert first.ids.tolist() == second.ids.tolist() == expected.tolist()
    assert [group[0].ids.tolist() for group in sampled] != [group[0].ids.tolist() for group in plain]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", VISION_KINDS)
def test_visual_tokens_are_never_sampled_however_likely(kind: str, temperature: float) -> None:
    model = tiny_model(kind)
    visual = {IMAGE, VIDEO, VISION_START, VISION_END}
    assert visual <= set(special_visual_token_ids(model))
    with torch.no_grad():  # their logits become multiples of a large number, of either sign
        model.lm_head.weight[list(visual)] *= 1e3
        assert int(model(**INPUTS["image"]).logits[0, -1].argmax()) in visual
    found = sample(model, [prepare_prompt(model, INPUTS["image"])], 8, Sampling(6, (EOS,), temperature), [seeded()])
    tokens = {token for group in ids(found) for y in group for token in y}
    assert not tokens & visual
    assert tokens


def test_ends_and_truncations() -> None:
    model = tiny_model()
    one = prepare_prompt(model, INPUTS["image"])
    greedy = ids(sample(model, [one], 1, GREEDY))[0][0]
    for position in (0, 3, LONGEST - 1):
        end = greedy[position]
        length = greedy.index(end) + 1
        [[completion]] = sample(model, [one], 1, Sampling(LONGEST, (98, end), temperature=0))
        assert completion.ids.tolist() == greedy[:length], "the end belongs to the completion"
        assert not completion.truncated
    [[completion]] = sample(model, [one], 1, Sampling(3, (98,), temperature=0))
    assert completion.ids.tolist() == greedy[:3]
    assert completion.truncated


@pytest.mark.parametrize("layers", [None, (1,), (0, -1)])
@pytest.mark.parametrize("kind", [*VISION_KINDS, "llama"])
def test_decoding_under_a_look_bias_is_the_packed_forward_under_it(kind: str, layers: tuple[int, ...] | None) -> None:
    """Each greedily chosen token is the most likely one of the packed forward that is biased in the same way."""
    model = tiny_model(kind)
    inputs = [INPUTS["text"]] if kind == "llama" else [INPUTS["image"], INPUTS["text"], INPUTS["images"]]
    prompts = [prepare_prompt(model, i) for i in inputs]
    biases = [draw_look_bias(p, 3, 3.0, seeded()) for p in prompts]
    banned = torch.tensor(special_visual_token_ids(model), dtype=torch.long)

    def best(logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        return {"best": logits.index_fill(-1, banned, float("-inf")).argmax(-1).float()}

    biased = sample(model, prompts, 3, GREEDY, look_bias=biases, bias_layers=layers)
    completions = [[y.ids for y in group] for group in biased]
    outputs = forward_groups(model, prompts, completions, look_bias=biases, bias_layers=layers, token_statistics=best)
    for group, output in zip(completions, outputs, strict=True):
        for y, likeliest in zip(group, output.extra["best"], strict=True):
            assert y.tolist() == likeliest[: len(y)].long().tolist()
    plain = sample(model, prompts, 3, GREEDY)
    assert ids(plain) != ids(biased), "a bias of this size changes what is said"
    firsts = [[[y[0] for y in group] for group in ids(found)] for found in (plain, biased)]
    assert firsts[0] == firsts[1], "the first token is predicted by the prompt, which is not biased"


def test_what_is_sampled_does_not_depend_on_what_it_is_batched_with() -> None:
    model = tiny_model()
    prompts = [prepare_prompt(model, INPUTS[kind]) for kind in ("image", "text", "images")]
    sampling = Sampling(LONGEST, (EOS,), temperature=1.5)
    together = ids(sample(model, prompts, 4, sampling, each(prompts)))
    generators = each(prompts)
    alone = [ids(sample(model, [p], 4, sampling, [g]))[0] for p, g in zip(prompts, generators, strict=True)]
    assert together == alone
    assert len({tuple(y) for group in together for y in group}) > 6


def test_bfloat16_decodes_within_its_rounding_of_the_packed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's keys and values are held as the model has them; the chosen tokens are nearly the likeliest in float32."""
    model = tiny_model().bfloat16()
    held: list[Part] = []
    enter = sampling.prefill
    monkeypatch.setattr(sampling, "prefill", lambda *args: held.append(enter(*args)) or held[0])
    image = {k: v.bfloat16() if v.is_floating_point() else v for k, v in INPUTS["image"].items()}
    [[found]] = sample(model, [prepare_prompt(model, image)], 1, GREEDY)
    assert {x.dtype for pair in held[0].prefix.layers.values() for x in pair} == {torch.bfloat16}
    banned = torch.tensor(special_visual_token_ids(model))

    def gap(logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        chosen = logits.gather(-1, found.ids[rows, None])[:, 0]
        return {"gap": logits.index_fill(-1, banned, float("-inf")).amax(-1) - chosen}

    exact = model.float()
    [output] = forward_groups(exact, [prepare_prompt(exact, INPUTS["image"])], [[found.ids]], token_statistics=gap)
    assert output.extra["gap"].max() < 0.05  # of logits whose spread is about one


def test_a_look_bias_of_zero_changes_nothing() -> None:
    model = tiny_model()
    prompts = [prepare_prompt(model, INPUTS[kind]) for kind in ("image", "text")]
    zeros = [torch.zeros(4, len(p.input_ids)) for p in prompts]
    sampling = Sampling(LONGEST, (EOS,))
    assert ids(sample(model, prompts, 4, sampling, each(prompts), zeros)) == ids(
        sample(model, prompts, 4, sampling, each(prompts))
    )


def test_a_look_bias_lies_on_the_image_or_on_the_text_where_there_is_none() -> None:
    model = tiny_model()
    image, text = (prepare_prompt(model, INPUTS[kind]) for kind in ("image", "text"))
    bias = draw_look_bias(image, 2000, 0.5, seeded())
    assert not bias[:, ~image.visual].any()
    assert bias[:, image.visual].std() == pytest.approx(0.5, rel=0.03)
    assert bias[:, image.visual].mean() == pytest.approx(0, abs=0.02)
    assert draw_look_bias(text, 2, 0.5, seeded()).all()


def test_sampling_leaves_every_module_in_the_mode_it_was_in() -> None:
    model = tiny_model()
    model.train()
    model.model.visual.eval()
    before = {name: module.training for name, module in model.named_modules()}
    sample(model, [prepare_prompt(model, INPUTS["image"])], 2, GREEDY)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert any(before.values())
    assert not all(before.values())


def test_dropout_does_not_act_while_sampling() -> None:
    model = tiny_model("llama", attention_dropout=0.9)
    expected = ids(sample(model, [prepare_prompt(model, INPUTS["text"])], 2, GREEDY))
    model.train()
    assert ids(sample(model, [prepare_prompt(model, INPUTS["text"])], 2, GREEDY)) == expected


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        Sampling(4, (EOS,), temperature=-1)
    with pytest.raises(ValueError, match=r"generation_config\.eos_token_id"):
        Sampling(4, ())


@pytest.mark.parametrize(("configured", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ())])
def test_end_tokens_come_from_the_generation_config(configured: Any, expected: tuple[int, ...]) -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = configured
    assert eos_token_ids(model) == expected


def disagreement(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> float:
    """Mean |log-probability that tokens were drawn at − that the packed forward finds for them| of rows that none leaves."""
    drawn: list[Tensor] = []

    def drawing(scores: Tensor, *how: Any) -> Tensor:
        chosen = _draw(scores, *how)
        drawn.append(scores.log_softmax(dim=-1).gather(-1, chosen[:, None])[:, 0])
        return chosen

    monkeypatch.setattr(sampling, "_draw", drawing)
    monkeypatch.setattr(batch, "DROP_SHARE", 2)
    prompts = [prepare_prompt(model, prompt("image", seed=i)) for i in range(3)]
    groups = [[one.ids for one in group] for group in sample(model, prompts, 8, Sampling(12, (EOS,)), each(prompts))]
    outputs = forward_groups(model, prompts, groups, layers=())
    at = torch.stack(drawn, dim=1).split(8)
    gaps = [(a[:, : o.logps.shape[1]] - o.logps)[o.mask] for a, o in zip(at, outputs, strict=True)]
    return float(torch.cat(gaps).abs().mean())


def test_with_an_adapter_rollouts_run_in_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same weights merged: what is left is bfloat16's rounding of other batches, which both have."""
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(tiny_model(), adapter)
    merged = copy.deepcopy(adapted).merge_and_unload()
    seen = []
    layer: Any = adapted.get_base_model().get_decoder().layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for model in (adapted, merged):
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as accelerate prepares it
    with_adapter, without = (disagreement(model, monkeypatch) for model in (adapted, merged))
    assert set(seen) == {torch.bfloat16}
    assert 0 < with_adapter < 1.5 * without


def test_only_an_end_that_was_written_is_left_out_of_the_text() -> None:
    """A completion that was cut off has no end-of-sequence token: its last token is text."""
    tokenizer = build_tokenizer()
    ids = torch.tensor(tokenizer("red blue", add_special_tokens=False).input_ids)
    ended = torch.cat([ids, torch.tensor([tokenizer.eos_token_id])])
    assert Completion(ids, truncated=True).text(tokenizer) == tokenizer.decode(ids)
    assert Completion(ended, truncated=False).text(tokenizer) == tokenizer.decode(ids)
    assert Completion(ids, truncated=True).text(tokenizer) != Completion(ids, truncated=False).text(tokenizer)


def test_rounding_never_points_past_the_last_token_with_any_mass() -> None:
    """The masses may add up to a little less than the largest uniform number; the tokens behind are banned."""
    scores = torch.randn(500, 40, generator=seeded())
    scores[:, 35:] = -torch.inf
    mass = scores.double().softmax(dim=-1).cumsum(dim=-1)[:, -1]
    uniform = torch.full((500,), 1 - 2**-53, dtype=torch.float64)
    assert (mass < uniform).any()
    assert _draw(scores, uniform, 1.0).max() == 34


def test_by_default_tokens_are_drawn_from_all_as_the_model_says() -> None:
    drawn = Sampling(1, (EOS,))
    assert (drawn.temperature, drawn.top_p, drawn.top_k) == (1, 1, 0)
    assert not sampling._processors(drawn)
