"""A small tokenizer, conversations and the chat templates that the tests of text and tokens share."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gistselect.data.tokens import encode
from gistselect.types import Example, Message, Record

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
