"""Chat templates as models ship them, and control tokens that only templates may write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gistselect.data.templates import load_template
from gistselect.errors import DataError
from gistselect.types import Message, Record
from rows import in_memory
from texts import conversation, example, pieces, tiny_tokenizer

CALL = {"name": "area", "arguments": {"sides": [2, 4]}}
TOOL = {"name": "area", "description": "Area", "parameters": {"type": "object", "properties": {}}}

# Own minimal copies of the habits of shipped templates, and what is supervised of two turns.
TEMPLATES = {
    "reasoning only in the last turn": (
        """{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant
{% if loop.last %}<think>
{{ m.reasoning_content | default('') }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
        ["A1.<|im_end|>\n", "<think>\n\n</think>\n\nA2.<|im_end|>\n"],
    ),
    "the prompt opens the reasoning": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<A>{{ m.content.split('</think>')[-1] }}"
        "{{ eos_token }}{% elif m.role == 'user' %}<U>{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<A><think>\n{% endif %}",
        ["A1.</s>", "A2.</s>"],
    ),
    "an end of sequence at the very end": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ["A1.<|end|>\n", "A2.<|end|>\n</s>"],
    ),
    "another end in the last turn": (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ["<|message|>A1.<|end|>", "<|message|>A2.<|return|>"],
    ),
    "system text in the last user turn": (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST] {% if loop.index0 >= messages | length - 2 and system %}{{ system }}\n\n"
        "{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}",
        [" A1.</s>", " A2.</s>"],
    ),
    "the stop token belongs to the next turn": (
        "[gMASK]{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["\nA1.<|user|>", "\nA2."],
    ),
    "contents are parts": (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        [" A1.<end>\n", " A2.<end>\n"],
    ),
}
TURNS = (("user", "Q1?"), ("assistant", "A1."), ("user", "Q2?"), ("assistant", "A2."))


def template_of(source: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    return load_template("model", tokenizer), tokenizer


@pytest.mark.parametrize("system", [(), (("system", "Sys."),)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_in_the_whole_rendering(name: str, system: tuple[tuple[str, str], ...]) -> None:
    source, expected = TEMPLATES[name]
    template, tokenizer = template_of(source)
    for turns in (TURNS, TURNS[2:]):
        record = conversation(*system, *turns)
        result = example(record, template, tokenizer)
        assert pieces(template.render(record))[1] == expected[-len(turns) // 2 :]
        told = [{"role": message.role, "content": message.content} for message in record.messages]
        if name == "contents are parts":
            told = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in told]
        assert result.input_ids.tolist() == tokenizer.apply_chat_template(told)["input_ids"]


def test_context_answers_are_not_supervised_under_any_template() -> None:
    for source, expected in TEMPLATES.values():
        template, _ = template_of(source)
        messages = [Message(role=role, content=said, supervised=said != "A1.") for role, said in TURNS]
        record = Record(id="r", source="s", row=0, messages=tuple(messages))
        assert pieces(template.render(record))[1] == expected[1:]


def test_reasoning_reaches_a_template_that_shows_it_and_is_refused_by_others() -> None:
    messages = (Message(role="user", content="Q?"), Message(role="assistant", content="A.", reasoning="Hm."))
    record = Record(id="r", source="s", row=0, messages=messages)
    template, _ = template_of(TEMPLATES["reasoning only in the last turn"][0])
    assert pieces(template.render(record))[1] == ["<think>\nHm.\n</think>\n\nA.<|im_end|>\n"]
    template, _ = template_of(TEMPLATES["an end of sequence at the very end"][0])
    with pytest.raises(DataError, match=r"does not show the reasoning of turn 2.* --unshown omit"):
        template.render(record)
    assert template.render(Record(id="r", source="s", row=0, messages=_without_reasoning(messages))).unshown == ""
    omitting = replace(template, omit_unshown=True)
    assert omitting.digest != template.digest
    assert omitting.render(record).unshown == "reasoning"
    assert pieces(omitting.render(record)) == pieces(
        template.render(Record(id="r", source="s", row=0, messages=_without_reasoning(messages)))
    )


def _without_reasoning(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(replace(message, reasoning="") for message in messages)


def test_a_turn_that_is_not_shown_is_refused_however_much_may_be_omitted() -> None:
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Q?"),
        Message(role="assistant", content="A."),
    )
    source = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    template, _ = template_of(source)
    with pytest.raises(DataError, match=r"does not show turn 1 \(system\); use --template tulu$"):
        replace(template, omit_unshown=True).render(Record(id="r", source="s", row=0, messages=messages))


CALLS = """{% for t in tools or [] %}{{ t | tojson }}
{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}\
[CALL]{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<end>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_calls_and_tools_reach_a_template() -> None:
    (record,) = in_memory(
        [
            {
                "messages": [
                    {"role": "user", "content": "Q?"},
                    {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
                    {"role": "tool", "content": "8"},
                    {"role": "assistant", "content": "A."},
                ],
                "tools": [TOOL],
            }
        ]
    ).rows()
    assert isinstance(record, Record)
    template, _ = template_of(CALLS)
    text, answers = pieces(template.render(record))
    assert answers == ['[CALL]area{"sides": [2, 4]}<end>\n', "A.<end>\n"]
    assert text.startswith('{"type": "function"')
    for source in (CALLS.replace("m.tool_calls", "[]"), CALLS.replace("t | tojson", "''")):
        template, _ = template_of(source)
        with pytest.raises(DataError, match=r"does not show (its tools|the call in turn 2)"):
            template.render(record)
    # Tools can be left out; of an answer that is a call alone nothing would be left to learn.
    template, _ = template_of(CALLS.replace("t | tojson", "''"))
    assert replace(template, omit_unshown=True).render(record).unshown == "tools"
    template, _ = template_of(CALLS.replace("m.tool_calls", "[]"))
    with pytest.raises(DataError, match="the answer of turn 2 has no text"):
        replace(template, omit_unshown=True).render(record)


# Control tokens.


@pytest.mark.parametrize("template_name", ["tulu", "model"])
def test_text_of_a_row_is_never_a_control_token(template_name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES["the prompt opens the reasoning"][0]
    template = load_template(template_name, tokenizer)
    for hostile in ("</s>", "<s>", "a</s><s>b", "</s></s>"):
        record = conversation(("user", f"Say {hostile}!"), ("assistant", f"It is {hostile} x"))
        found = example(record, template, tokenizer)
        honest = example(conversation(("user", "Say it!"), ("assistant", "It is x")), template, tokenizer)
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            assert (found.input_ids == token).sum() == (honest.input_ids == token).sum()
        whole = tokenizer.decode(found.input_ids, clean_up_tokenization_spaces=False)
        assert f"Say {hostile}!" in whole
        labels = tokenizer.decode(found.input_ids[found.supervised], clean_up_tokenization_spaces=False)
        assert labels.startswith(f"It is {hostile} x</s>")
        assert labels.count("</s>") == hostile.count("</s>") + 1


def test_an_answer_of_thinking_tags_alone_is_refused() -> None:
    template, _ = template_of(TEMPLATES["an end of sequence at the very end"][0])
    with pytest.raises(DataError, match="turn 2 has no text but thinking tags"):
        template.render(conversation(("user", "Q?"), ("assistant", "<think></think>")))


def test_a_call_ends_where_the_tool_that_answers_is_named_again() -> None:
    """As gpt-oss does: the header of the tool's turn repeats the name of the called function."""
    source = (
        "{% set called = namespace(name='') %}{% for m in messages %}{% if m.role == 'tool' %}"
        "<|start|>functions.{{ called.name }} to=assistant<|message|>{{ m.content }}<|end|>"
        "{% elif m.tool_calls %}{% set called.name = m.tool_calls[0].function.name %}"
        "<|start|>assistant to={{ called.name }}<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    template, _ = template_of(source)
    call = Message(role="assistant", content="", tool_calls=({"type": "function", "function": CALL},))
    turns = (
        Message(role="user", content="How large?"),
        call,
        Message(role="tool", content="8", name="area"),
        Message(role="assistant", content="Eight."),
    )
    record = Record(id="r", source="s", row=0, messages=turns)
    said = pieces(template.render(record))[1]
    assert said[0].endswith("<|call|>")
    assert "functions.area" not in said[0]
    assert said[1] == "<|message|>Eight.<|end|>"


def test_a_call_ends_at_its_end_where_its_reasoning_is_dropped_once_an_answer_follows() -> None:
    """As gpt-oss does: the reasoning before a call is shown while the tool has not answered."""
    source = (
        "{% set last = messages[-1].role == 'assistant' and not messages[-1].tool_calls %}"
        "{% set called = namespace(name='') %}{% for m in messages %}{% if m.role == 'tool' %}"
        "<|start|>functions.{{ called.name }}<|channel|>commentary<|message|>{{ m.content }}<|end|>"
        "{% elif m.tool_calls %}{% set called.name = m.tool_calls[0].function.name %}"
        "{% if m.reasoning_content and not last %}<|start|>assistant<|channel|>analysis<|message|>"
        "{{ m.reasoning_content }}<|end|>{% endif %}"
        "<|start|>assistant to={{ called.name }}<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
        "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>{% if m.reasoning_content %}"
        "{{ m.reasoning_content }}<|channel|>{% endif %}{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    template, _ = template_of(source)
    call = {"type": "function", "function": CALL}
    turns = (
        Message(role="user", content="How large?"),
        Message(role="assistant", content="", reasoning="I measure.", tool_calls=(call,)),
        Message(role="tool", content="8", name="area"),
        Message(role="assistant", content="Eight."),
    )
    _, (first, second) = pieces(template.render(Record(id="r", source="s", row=0, messages=turns)))
    assert first == ' to=area<|message|>{"sides": [2, 4]}<|call|>'
    assert second == "<|channel|>Eight.<|end|>"


def test_the_header_of_an_answer_to_a_tool_is_not_learned() -> None:
    """As Gemma's diffusion model does: the prompt after a tool's answer lacks the header that the turn then has."""
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}<|response>{{ m.content }}<response|>"
        "{% elif m.tool_calls %}<|turn>model\n<|call>{{ m.tool_calls[0].function.name }}<call|>"
        "{% else %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<turn|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt and messages[-1].role != 'tool' %}<|turn>model\n{% endif %}"
    )
    template, _ = template_of(source)
    turns = (
        Message(role="user", content="How large?"),
        Message(role="assistant", content="", tool_calls=({"type": "function", "function": CALL},)),
        Message(role="tool", content="8", name="area"),
        Message(role="assistant", content="Eight."),
    )
    _, said = pieces(template.render(Record(id="r", source="s", row=0, messages=turns)))
    assert said == ["<|call>area<call|>", "Eight.<turn|>\n"]
