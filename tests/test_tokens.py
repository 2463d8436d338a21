"""Templates to the character, and labels against byte positions counted independently."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gistselect.data.tokens import TOKENIZER_BATCH, encode, load_template
from gistselect.errors import ConfigError, DataError
from gistselect.types import Example, Message, Record, Rejected

CORPUS = [
    "The answer is: B\n<|user|>\nHello there, how are you?\n<|assistant|>\n",
    "żółw 東京 é 12 + 30 = 42\n\n  x",
] * 4
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CHATML_MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>
{% endgeneration %}{% else %}{{ m.content }}<|im_end|>
{% endif %}{% endfor %}"""


@cache
def tiny_tokenizer(*, regex: bool = True, trim: bool = False, bos: bool = True) -> Any:
    """A byte-level BPE; without the regex it merges across words, and so across the seam of prompt and answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def conversation(*turns: tuple[str, str], **fields: Any) -> Record:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Record(**{"id": "r", "source": "s", "row": 0, "messages": messages, **fields})


def plain(prompt: str, completion: str, **fields: Any) -> Record:
    return conversation(("user", prompt), ("assistant", completion), plain=True, **fields)


def query(prompt: str, prefix: str, answer: str, **fields: Any) -> Record:
    return conversation(("user", prompt), ("assistant", answer), prefix=prefix, closed=False, **fields)


def pieces(rendered: Any) -> tuple[str, list[str]]:
    return rendered.text, [rendered.text[start:end] for start, end in rendered.supervised]


def example(record: Record, template: Any, tokenizer: Any, max_length: int = 10_000) -> Example:
    (result,) = encode([record], template, tokenizer, max_length)
    assert isinstance(result, Example), result
    return result


TALK = conversation(
    ("system", " Be brief.\n"), ("user", "Hi "), ("assistant", "\nHello! "), ("user", "Bye"), ("assistant", "See you")
)


# Text.


def test_tulu_to_the_character() -> None:
    template = load_template("tulu", tiny_tokenizer())
    text, supervised = pieces(template.render(TALK))
    assert text == (
        "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\nBye\n<|assistant|>\nSee you</s>\n"
    )
    assert supervised == ["Hello!</s>\n", "See you</s>\n"]


def test_tulu_queries_are_verbatim_and_open() -> None:
    template = load_template("tulu", tiny_tokenizer())
    text, supervised = pieces(template.render(query(" Why? ", "A:", " Because. ")))
    assert (text, supervised) == ("<|user|>\n Why? \n<|assistant|>\nA: Because. ", [" Because. "])
    few_shot = conversation(*[(m.role, m.content) for m in TALK.messages], prefix="P", closed=False)
    text, supervised = pieces(template.render(few_shot))
    assert text.endswith("<|assistant|>\n\nHello! </s>\n<|user|>\nBye\n<|assistant|>\nPSee you")
    assert supervised == ["See you"]


@pytest.mark.parametrize(
    ("prompt", "completion", "text", "supervised"),
    [
        ("1 + 1 =", "2", "1 + 1 = 2</s>", " 2</s>"),
        ("1 + 1 = ", "2", "1 + 1 = 2</s>", "2</s>"),
        ("1 + 1 =\n", "2", "1 + 1 =\n2</s>", "2</s>"),
        ("1 + 1 =", "\t2 ", "1 + 1 =\t2 </s>", "\t2 </s>"),
        ("", "2", "2</s>", "2</s>"),
    ],
)
def test_plain_records_have_one_space_at_the_seam(prompt: str, completion: str, text: str, supervised: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    for name in ("tulu", "model"):
        assert pieces(load_template(name, tokenizer).render(plain(prompt, completion))) == (text, [supervised])


@pytest.mark.parametrize("source", [CHATML, CHATML_MARKED])
def test_a_chat_template_with_and_without_generation_blocks(tmp_path: Path, source: str) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(source)
    template = load_template(str(file), tiny_tokenizer())
    text, supervised = pieces(template.render(TALK))
    assert text.startswith("<|im_start|>system\n Be brief.\n<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n")
    assert supervised == ["\nHello! <|im_end|>\n", "See you<|im_end|>\n"]


def test_queries_under_a_chat_template_follow_the_generation_prompt(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(CHATML)
    template = load_template(str(tmp_path / "t"), tiny_tokenizer())
    text, supervised = pieces(template.render(query("Why?", "A:", " x")))
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nA: x"
    assert supervised == [" x"]


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_does(tmp_path: Path) -> None:
    """As templates do that drop the reasoning of all assistant turns but the last."""
    forgetful = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '…' }}")
    (tmp_path / "t").write_text(forgetful)
    template = load_template(str(tmp_path / "t"), tiny_tokenizer())
    single = conversation(("user", "Hi"), ("assistant", "Hello"), id="single")
    kept, refused = encode([single, TALK], template, tiny_tokenizer(), 1000)
    assert isinstance(kept, Example)
    assert isinstance(refused, Rejected)
    assert "cannot say which tokens are the assistant's" in refused.reason


def test_what_a_template_refuses_is_quarantined_with_its_words(tmp_path: Path) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHATML
    (tmp_path / "t").write_text(no_system)
    (refused,) = encode([TALK], load_template(str(tmp_path / "t"), tiny_tokenizer()), tiny_tokenizer(), 1000)
    assert isinstance(refused, Rejected)
    assert "no system turns" in refused.reason


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for m in messages %}{% generation %}{% endgeneration %}{% endfor %}fixed",
        "always the same",
    ],
)
def test_an_unusable_template_is_refused_at_once(tmp_path: Path, source: str) -> None:
    (tmp_path / "t").write_text(source)
    with pytest.raises(ConfigError, match="cannot use the template"):
        load_template(str(tmp_path / "t"), tiny_tokenizer())


def test_a_template_with_todays_date_is_the_same_tomorrow(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    text, _ = pieces(load_template(str(tmp_path / "t"), tiny_tokenizer()).render(TALK))
    assert text.startswith("26 Jul 2024\n<|im_start|>system")


def test_template_names_and_digests(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(trim=True)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="Or use tulu"):
        load_template("model", tokenizer)
    with pytest.raises(ConfigError, match="known: tulu, model"):
        load_template("tullu", tokenizer)
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(ConfigError, match="latin"):
        load_template(str(tmp_path / "latin"), tokenizer)
    with pytest.raises(ConfigError, match="no eos_token"):
        load_template("tulu", SimpleNamespace(eos_token=None, name_or_path="x"))  # pyright: ignore[reportArgumentType]
    (tmp_path / "a").write_text(CHATML)
    (tmp_path / "b").write_text(CHATML)
    (tmp_path / "c").write_text(CHATML + "{# changed #}")
    a, b, c = (load_template(str(tmp_path / name), tokenizer).digest for name in "abc")
    assert a == b != c != load_template("tulu", tokenizer).digest


# Labels.

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
