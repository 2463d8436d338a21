"""`gistselect doctor`: what this machine and a model can do, each as a check with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gistselect.errors import GistSelectError
from gistselect.model.config import ModelConfig, ModelSettings
from gistselect.run.machine import Check, machine_checks
from gistselect.run.standalone_config import DoctorConfig
from gistselect.types import Example, Message, Record

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

SEED = 0
SAID = (
    ("What is 7 times 6?", "7 times 6 is 42."),
    ("Name a river in France.", "The Loire."),
    ("Write two lines about rain.", "Rain knocks softly on the pane,\nand asks to be let in again."),
)
"""Conversations on which gradients are compared."""


def examine(config: DoctorConfig) -> Iterator[Check]:
    """Every check, each as soon as it is known; those of the model stop at the first that the others need."""
    yield from machine_checks(config, config.output)
    if config.model is not None:
        yield from _model_checks(config, config.model)


def is_healthy(checks: list[Check]) -> bool:
    """Whether nothing is bad; notes are no failure."""
    return all(check.status != "bad" for check in checks)


def _model_checks(config: DoctorConfig, path: str) -> Iterator[Check]:
    from gistselect.model.adapters import load_adapter
    from gistselect.model.loading import load_model, load_tokenizer
    from gistselect.model.selftest import with_trial_adapter

    source = ModelConfig(path=path, **{name: getattr(config, name) for name in ModelSettings.model_fields})
    try:
        tokenizer = load_tokenizer(source, config.adapter)
    except GistSelectError as error:
        yield _bad("tokenizer", path, error)
        return
    kind = "fast" if tokenizer.is_fast else "slow, without character offsets"
    yield Check(
        group="model",
        name="tokenizer",
        status="ok" if tokenizer.is_fast else "bad",
        found=f"{kind}, {len(tokenizer):,} tokens, ends with {tokenizer.eos_token!r}",
        remedy="" if tokenizer.is_fast else "convert it to a tokenizer.json; AutoTokenizer does so for most models.",
    )
    try:
        model = load_model(source)
    except GistSelectError as error:
        yield _bad("weights", path, error)
        return
    n_parameters = sum(value.numel() for value in model.model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    attention = getattr(model.causal.config, "_attn_implementation", "its own attention")
    yield Check(
        group="model",
        name="weights",
        status="ok",
        found=f"{type(model.causal).__name__}, {n_parameters / 1e6:,.1f} M parameters, {dtype}, {attention}",
    )
    examples: list[Example] = []
    for name in dict.fromkeys((config.template, *(("model",) if tokenizer.chat_template else ()))):
        check, read = _template_check(name, tokenizer, _stops(model.causal, tokenizer), used=name == config.template)
        yield check
        examples = examples or (read if name == config.template else [])
    try:
        adapted = load_adapter(model, config.adapter) if config.adapter else with_trial_adapter(model, SEED)
    except GistSelectError as error:
        yield _bad("adapter", str(config.adapter or "a small random one"), error)
        return
    if examples:
        yield from _gradient_checks(adapted, examples, config)


def _stops(causal: Any, tokenizer: Any) -> set[int]:
    """Ids at which the model's generation ends."""
    said = getattr(getattr(causal, "generation_config", None), "eos_token_id", None)
    several = said if isinstance(said, (list, tuple)) else [said]
    return {int(one) for one in (*several, tokenizer.eos_token_id) if one is not None}


def _template_check(name: str, tokenizer: Any, stops: set[int], *, used: bool) -> tuple[Check, list[Example]]:
    """How a template marks answers, and whether the last thing learned ends the turn; the conversations as tokens."""
    from gistselect.data.endings import last_learned
    from gistselect.data.templates import load_template
    from gistselect.data.tokens import encode

    title = f"template {name}"
    try:
        template = load_template(name, tokenizer)
        encoded = encode([_record(number) for number in range(len(SAID))], template, tokenizer, max_length=512)
    except GistSelectError as error:
        return _bad(title, "cannot be used", error, status="bad" if used else "note"), []
    examples = [one for one in encoded if isinstance(one, Example)]
    if len(examples) < len(encoded):
        reason = next(one.reason for one in encoded if not isinstance(one, Example))
        return Check(group="model", name=title, status="bad" if used else "note", found=reason,
                     remedy="use --template tulu."), []  # fmt: skip
    ended = [last_learned(one, tokenizer, stops) for one in examples]
    text, _ = ended[0]
    own = getattr(template, "marks_answers", False)
    learned = "what its generation blocks mark is learned" if own else "each answer is learned with what closes it"
    found = f"{learned}; the last learned token is {text!r}"
    if all(stop for _, stop in ended):
        return Check(group="model", name=title, status="ok", found=f"{found}, where generation stops"), examples
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(one)) for one in sorted(stops))
    remedy = f"generation stops at {names}: a model taught this will not end its answers; "
    remedy += "set eos_token in the tokenizer and generation_config.json to it, or use --template tulu."
    return Check(group="model", name=title, status="note", found=found, remedy=remedy), examples


def _record(number: int) -> Record:
    question, answer = SAID[number]
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Record(id=f"trial-{number}", source="trial", row=number, messages=turns)


def _gradient_checks(adapted: LanguageModel, examples: list[Example], config: DoctorConfig) -> Iterator[Check]:
    from gistselect.model.selftest import compare_gradients

    try:
        result = compare_gradients(adapted, examples, config.engine)
    except GistSelectError as error:
        yield _bad("layout", "none gives the model's own loss", error)
        return
    yield Check(
        group="model",
        name="layout",
        status="note" if result.fell_back else "ok",
        found=f"{result.mode}; the loss is the model's own, and no row moves another",
        remedy="results are right; passes take longer than they could, see --engine.packing."
        if result.fell_back
        else "",
    )
    worst = float(result.errors.max())
    yield Check(
        group="model",
        name="gradients",
        status="ok" if result.passed else "bad",
        found=f"{len(examples)} rows at once differ from plain backward passes by {worst:.1e} at most "
        f"(allowed {result.tolerance:g})",
        remedy=""
        if result.passed
        else "do not use scores of this model as it is; try --engine.capture autograd, --engine.packing single or "
        "--dtype float32, and report it.",
    )


def _bad(name: str, found: str, error: GistSelectError, status: Any = "bad") -> Check:
    return Check(group="model", name=name, status=status, found=found, remedy=str(error))
