"""The tokenizer of the demo model: a byte-level BPE and the tulu chat format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from build_demo_data import read_lines
from demo_corpus import Conversation, Row
from demo_recipe import Recipe

TULU_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ message['content'] | trim + eos_token + '\\n' }}{% endgeneration %}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""Without the BOS: the text is tokenised as one string, and the tokenizer itself puts the BOS in front."""

IGNORED = -100
"""The label of a token that is not predicted."""

Example = dict[str, list[int]]
"""`input_ids` and `labels` of one conversation, of equal length."""


def fitting_texts(rows: Sequence[Row], recipe: Recipe) -> Iterator[str]:
    """Message texts with their markers, without the EOS: a special token is no text to learn merges from."""
    characters = 0
    for row in rows:
        for message in row.messages:
            text = f"<|{message['role']}|>\n{message['content'].strip()}\n"
            characters += len(text)
            yield text
        if characters > recipe.tokenizer_characters:
            return


def train_tokenizer(texts: Iterable[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; the tulu markers are ordinary text, as to any base model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=recipe.max_positions,
        clean_up_tokenization_spaces=False,
        chat_template=TULU_TEMPLATE,
    )


def render(tokenizer: PreTrainedTokenizerBase, messages: Conversation, *, to_answer: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_answer))


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Example]:
    """Whole conversations, cut at the model's length; every token but the BOS is predicted.

    Cut here and not by the tokenizer, which would keep the cut as a setting of its own and be shipped with it.
    """
    texts = [render(tokenizer, row.messages) for row in rows]
    encoded = [ids[: tokenizer.model_max_length] for ids in tokenizer(texts)["input_ids"]]
    return [{"input_ids": ids, "labels": ids} for ids in encoded]


def gsm8k_examples(tokenizer: PreTrainedTokenizerBase, demo: Path) -> list[Example]:
    """The demo's GSM8K test items in the tulu format; only the worked solution is predicted."""
    examples = []
    for line in read_lines(demo / "eval/gsm8k/test.jsonl"):
        item = json.loads(line)
        prompt = [{"role": "user", "content": item["question"]}]
        start = len(render(tokenizer, prompt, to_answer=True))
        text = render(tokenizer, [*prompt, {"role": "assistant", "content": item["answer"]}])
        encoding = tokenizer(text, return_offsets_mapping=True)
        labels = [
            token if begin >= start else IGNORED
            for token, (begin, _) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]
        examples.append({"input_ids": encoding["input_ids"], "labels": labels})
    return examples
