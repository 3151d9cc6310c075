"""Spans of a document as the tokens that spell them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ral.data.prompt import encode_prompt
from ral.data.record import Record, Span
from ral.data.spans import answer_span, passage, token_at, token_span
from ral.errors import DataError
from ral.testbed.model import build_tokenizer
from ral.testbed.needles import needle_records
from ral.testbed.rings import ring_records
from tests.data.conftest import byte_tokenizer

TOKENIZER = build_tokenizer()


def ids_of(record: Record) -> torch.Tensor:
    return encode_prompt(TOKENIZER, record, think=True, template="plain")["input_ids"][0]


def test_spans_become_the_tokens_that_spell_them() -> None:
    for record in needle_records(20, 0):
        ids = ids_of(record)
        found = passage(TOKENIZER, ids, record)
        assert found is not None
        assert record.document is not None
        document = ids[found.tokens]
        assert TOKENIZER.decode(document) == record.problem[record.document.start : record.document.stop]
        [(box, span)] = zip(found.boxes, record.evidence, strict=True)
        assert TOKENIZER.decode(document[int(box.x0) : int(box.x1)]) == record.problem[span.start : span.stop]
        assert found.sizes == [(len(document), 1)]


def test_other_records_have_no_passage_and_spans_must_fit() -> None:
    [record] = needle_records(1, 0)
    ids = ids_of(record)
    assert passage(TOKENIZER, ids, replace(record, document=None)) is None
    assert passage(TOKENIZER, ids, replace(ring_records(1, 0)[0], document=Span(0, 4))) is None
    with pytest.raises(DataError, match="needles-0-0: evidence at characters 0 to 4 is not in the document"):
        passage(TOKENIZER, ids, replace(record, evidence=(Span(0, 4),)))
    with pytest.raises(DataError, match="does not spell out"):
        passage(TOKENIZER, ids[:9], record)


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose tokens join the first or the last bytes of a character with its neighbours."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    first, second, third = level.pre_tokenize_str("中")[0][0]
    merges = [("b", first), (second, third), (second + third, "a"), ("1", first), (third, "b")]
    letters = [*sorted(level.alphabet()), *(left + right for left, right in merges)]
    model = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=merges))
    model.pre_tokenizer = level
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way (Llama 2, Gemma): a character outside of the vocabulary is the tokens of its bytes."""
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    for piece in ["▁", *"[]<>/,.0123456789abcdefghijklmnopqrstuvwxyz", "中"]:
        vocab.setdefault(piece, len(vocab))
    model = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def size_of(piece: str, tokenizer: PreTrainedTokenizerFast) -> int:
    """Bytes of a token."""
    if tokenizer.unk_token is None:
        return len(piece)  # a letter of the byte-level alphabet each
    return 1 if piece.startswith("<0x") or piece == "▁" else len(piece.encode())


TOKENIZERS = {"bytes": byte_tokenizer(), "merged": merged_tokenizer(), "fallback": fallback_tokenizer()}
PIECES = [*"ab 1,[]éß中国仁介亾文😀👩\u200d\u0301ا", "b中", "中b", "1中", "中a", "中国", "😀👩"]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=20).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, data=st.data())
def test_places_are_exact_whatever_bytes_the_tokens_split(name: str, text: str, data: st.DataObject) -> None:
    """Compared with the bytes of tokens and characters."""
    tokenizer = TOKENIZERS[name]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(ids) == text
    ends = list(accumulate(size_of(piece, tokenizer) for piece in tokenizer.convert_ids_to_tokens(ids.tolist())))
    starts = [0, *ends]
    for place in range(len(text)):
        low, high = len(text[:place].encode()), len(text[: place + 1].encode())
        assert token_at(tokenizer, ids, place) == next(n for n, end in enumerate(ends) if end >= high)
        stop = data.draw(st.integers(place + 1, len(text)))
        high = len(text[:stop].encode())
        parts = [n for n in range(len(ids)) if starts[n] < high and ends[n] > low]
        assert token_span(tokenizer, ids, place, stop) == slice(parts[0], parts[-1] + 1)


def test_bytes_that_spell_nothing_hinder_no_search() -> None:
    tokenizer = TOKENIZERS["fallback"]
    broken = [1 + 0xE4, 1 + 0xB8, *tokenizer.encode("ab [1,2,3,4]"), 1 + 0xF0, *tokenizer.encode("國國"), 1 + 0x9F]
    ids = torch.tensor(broken)
    text = tokenizer.decode(ids)
    assert "\ufffd" in text
    assert token_at(tokenizer, ids, text.index("]")) == tokenizer.convert_ids_to_tokens(broken).index("]")
    assert token_at(tokenizer, ids, len(text) + 5) == len(ids) - 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_between_characters_of_several_tokens_is_found(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = "😀國😀<answer>國😀b</answer>國"
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    span = answer_span(tokenizer, ids, "國😀b")
    assert span is not None
    assert tokenizer.decode(ids[span]) == "國😀b"
