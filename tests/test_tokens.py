"""Ids and labels, against byte positions counted independently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistselect.data.templates import load_template
from gistselect.data.tokens import TOKENIZER_BATCH, encode
from gistselect.errors import ConfigError, DataError
from gistselect.types import Example, Record, Rejected
from texts import CHATML, TALK, conversation, example, plain, query, tiny_tokenizer

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(st.one_of(st.sampled_from("ab :\n<|é東🙂\u3000"), CHARACTERS), max_size=25)
ANSWER = TEXT.filter(lambda text: text.strip() and "</s>" not in text and "<s>" not in text)
TURNS = st.lists(st.tuples(TEXT, ANSWER), min_size=1, max_size=3)
TOKENIZERS = [{}, {"trim": True}, {"regex": False}, {"bos": False}]


@settings(max_examples=150, deadline=None)
@given(turns=TURNS, options=st.sampled_from([{}, {"trim": True}, {"bos": False}]))
def test_supervised_tokens_decode_to_the_answers(turns: list[tuple[str, str]], options: dict[str, bool]) -> None:
    tokenizer = tiny_tokenizer(**options)
    record = conversation(*[turn for u, a in turns for turn in (("user", u), ("assistant", a))])
    result = example(record, load_template("tulu", tokenizer), tokenizer)
    labels = result.input_ids[result.supervised]
    assert tokenizer.decode(labels, clean_up_tokenization_spaces=False) == "".join(
        f"{answer.strip()}</s>\n" for _, answer in turns
    )


BYTE_OF = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
BYTE_OF |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in set(BYTE_OF.values()))}


def overlapping_tokens(rendered: Any, ids: list[int], tokenizer: Any) -> list[bool]:
    """Which tokens hold a byte of a supervised span, by counting the bytes that each token stands for."""
    spans = [tuple(len(rendered.text[:edge].encode()) for edge in span) for span in rendered.supervised]
    labels, position = [], 0
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        added = token == "<s>" and index == 0 and not rendered.text.startswith("<s>")
        size = 0 if added else len(token) if token in ("<s>", "</s>") else len([BYTE_OF[c] for c in token])
        labels.append(any(position < end and position + size > start for start, end in spans if size))
        position += size
    assert position == len(rendered.text.encode())
    return labels


@settings(max_examples=300, deadline=None)
@given(
    record=st.one_of(
        st.builds(query, TEXT, TEXT, ANSWER),
        st.builds(plain, TEXT, ANSWER),
        st.builds(lambda u, a: conversation(("user", u), ("assistant", a)), TEXT, ANSWER),
    ),
    options=st.sampled_from(TOKENIZERS),
)
def test_labels_equal_byte_positions(record: Record, options: dict[str, bool]) -> None:
    tokenizer = tiny_tokenizer(**options)
    template = load_template("tulu", tokenizer)
    (result,) = encode([record], template, tokenizer, 10_000)
    rendered = template.render(record)
    assert all(0 <= start < end <= len(rendered.text) for start, end in rendered.supervised)
    ids = tokenizer(rendered.text)["input_ids"]
    expected = overlapping_tokens(rendered, ids, tokenizer)
    if not any(expected[1:]):
        assert isinstance(result, Rejected)
        return
    assert isinstance(result, Example)
    assert result.input_ids.tolist() == ids
    assert result.supervised.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(turns=TURNS, max_length=st.integers(2, 60))
def test_truncation_cuts_and_never_leaves_a_row_without_labels(turns: list[tuple[str, str]], max_length: int) -> None:
    tokenizer = tiny_tokenizer()
    template = load_template("tulu", tokenizer)
    record = conversation(*[turn for u, a in turns for turn in (("user", u), ("assistant", a))])
    full = example(record, template, tokenizer)
    (cut,) = encode([record], template, tokenizer, max_length)
    if full.supervised[1:max_length].any():
        assert isinstance(cut, Example)
        assert cut.input_ids.tolist() == full.input_ids[:max_length].tolist()
        assert (full.n_cut, cut.n_cut) == (0, max(0, full.n_tokens - max_length))
        assert cut.supervised.tolist() == full.supervised[:max_length].tolist()
        return
    assert isinstance(cut, Rejected)
    assert f"it has {full.n_tokens} tokens" in cut.reason
    enough = int(cut.reason.rsplit(" ", 1)[1])
    assert example(record, template, tokenizer, enough).n_supervised == 1


def test_a_token_merged_across_the_seam_is_an_answer_token() -> None:
    tokenizer = tiny_tokenizer(regex=False, bos=False)
    result = example(plain("The answer is:", " B\n"), load_template("tulu", tokenizer), tokenizer)
    first = tokenizer.convert_ids_to_tokens(result.input_ids.tolist())[int(result.supervised.argmax())]
    assert first == ":Ġ"


@pytest.mark.parametrize("bos", [True, False])
def test_there_is_one_beginning_of_sequence(tmp_path: Path, bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    (tmp_path / "t").write_text("{{ bos_token }}" + CHATML)
    with_bos = example(TALK, load_template(str(tmp_path / "t"), tokenizer), tokenizer)
    assert (with_bos.input_ids == tokenizer.bos_token_id).tolist() == [True] + [False] * (with_bos.n_tokens - 1)
    without = example(TALK, load_template("tulu", tokenizer), tokenizer)
    assert int((without.input_ids == tokenizer.bos_token_id).sum()) == int(bos)
    assert not without.supervised[0]


def test_neighbours_and_order_change_nothing() -> None:
    tokenizer = tiny_tokenizer()
    template = load_template("tulu", tokenizer)
    records = [plain(f"{i} + {i} =" * (i % 7 + 1), f"{2 * i}", id=f"r{i}") for i in range(TOKENIZER_BATCH + 30)]
    records[3] = plain("<s>bos in the text", "x", id="r3")
    together = encode(records, template, tokenizer, 40)
    backwards = encode(records[::-1], template, tokenizer, 40)[::-1]
    alone = [encode([record], template, tokenizer, 40)[0] for record in records]
    for record, a, b, c in zip(records, together, backwards, alone, strict=True):
        assert record.id == a.id == b.id == c.id
        assert type(a) is type(b) is type(c)
        if isinstance(a, Example) and isinstance(b, Example) and isinstance(c, Example):
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            np.testing.assert_array_equal(a.input_ids, c.input_ids)
            np.testing.assert_array_equal(a.supervised, b.supervised)
            np.testing.assert_array_equal(a.supervised, c.supervised)
    assert any(isinstance(result, Rejected) for result in together)
    assert encode([], template, tokenizer, 40) == []


def test_a_first_token_alone_cannot_be_predicted() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    (result,) = encode([plain("", "a", closed=False)], load_template("tulu", tokenizer), tokenizer, 10)
    assert isinstance(result, Rejected)
    assert "no token of its answer to predict" in result.reason


def test_options_that_cannot_work() -> None:
    template = load_template("tulu", tiny_tokenizer())
    with pytest.raises(ConfigError, match="not a fast one"):
        encode([TALK], template, SimpleNamespace(is_fast=False, name_or_path="slow"), 10)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="max_length=1"):
        encode([TALK], template, tiny_tokenizer(), 1)
    with pytest.raises(DataError, match="must end with the assistant"):
        template.render(conversation(("assistant", "a"), ("user", "q"), closed=False))
