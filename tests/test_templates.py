"""Templates to the character."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import ConfigError
from gistselect.types import Example, Rejected
from texts import CHATML, CHATML_MARKED, TALK, conversation, pieces, plain, query, tiny_tokenizer


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


def test_a_template_that_leaves_out_earlier_turns_is_refused_where_it_does(tmp_path: Path) -> None:
    forgetful = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '…' }}")
    (tmp_path / "t").write_text(forgetful)
    template = load_template(str(tmp_path / "t"), tiny_tokenizer())
    single = conversation(("user", "Hi"), ("assistant", "Hello"), id="single")
    kept, refused = encode([single, TALK], template, tiny_tokenizer(), 1000)
    assert isinstance(kept, Example)
    assert isinstance(refused, Rejected)
    assert "does not show turn 1 (system)" in refused.reason


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
