"""Train the demo model shipped with the package, from scratch on the CPU: a byte-level BPE and a small Llama.

It is a *base* model in the tulu format. Mathematics, every pool row of the demo and every evaluation item
are held out, by id and by text, so a mathematics target is new to it and the rest of the pool is not.

    python tools/train_demo_model.py --data <corpus folder> [--demo <demo data>] [--output <model folder>]

An interrupted run continues from its last checkpoint with the same batches; a finished one is exported,
evaluated and described.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from build_demo_data import DEFAULT_OUTPUT as DEMO_DATA
from demo_corpus import Row, read_corpus, rows_within_budget
from demo_recipe import Recipe
from demo_tokenizer import Example, encode, fitting_texts, train_tokenizer
from describe_demo_model import TrainingRun, as_dataset, describe, keep_token_losses, mean_token_loss, predicted_tokens


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of training, evaluation included, over all the processes that an interrupted run took."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.since = time.monotonic()

    def on_train_begin(self, args, state, control, **_) -> None:
        self.since = time.monotonic()

    def on_step_end(self, args, state, control, **_) -> None:
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now

    def state(self) -> dict:
        return {"args": {"seconds": self.seconds}, "attributes": {}}


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    set_seed(recipe.seed)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.max_positions,
            tie_word_embeddings=True,
            **special,
        )
    )


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """Linear warm-up, then a cosine down to the final rate; weight decay on matrices only, as is the Trainer's way."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.rows_per_step,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": recipe.final_learning_rate},
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_grad_norm=recipe.clip_norm,
        seed=recipe.seed,
        use_cpu=True,
        logging_steps=25,
        eval_strategy="steps",
        eval_steps=300,
        save_steps=50,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,
        disable_tqdm=True,
        report_to="none",
    )


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    folder: Path,
    training: Sequence[Example] = (),
    validation: Sequence[Example] = (),
) -> Trainer:
    return Trainer(
        model=model,
        args=training_arguments(recipe, folder),
        train_dataset=as_dataset(training),
        eval_dataset=as_dataset(validation),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_metrics=mean_token_loss,
        preprocess_logits_for_metrics=keep_token_losses,
        callbacks=[Stopwatch()],
    )


def curve(trainer: Trainer, quantity: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), round(entry[quantity], 4)) for entry in trainer.state.log_history if quantity in entry]


def train(trainer: Trainer, trained: Sequence[Example]) -> TrainingRun:
    """Train to the end of the rows, from the last checkpoint in the trainer's folder if there is one."""
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))
    stopwatch = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Stopwatch))
    return TrainingRun(
        parameters=trainer.get_num_trainable_parameters(),
        steps=trainer.state.global_step,
        tokens=predicted_tokens(trained),
        seconds=stopwatch.seconds,
        train_curve=curve(trainer, "loss"),
        validation_curve=curve(trainer, "eval_token_loss"),
    )


def run_folder(checkpoints: Path, recipe: Recipe, trained: Sequence[Row]) -> Path:
    """A folder of its own for each recipe and order of rows: what is resumed there is this very run."""
    identity = json.dumps([asdict(recipe), [row.id for row in trained]])
    folder = checkpoints / hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """bf16 weights, configuration and tokenizer, each file replaced in one move."""
    model.config.use_cache = True
    shipped = LlamaForCausalLM(model.config)
    shipped.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as name:
        folder = Path(name)
        shipped.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the full corpus in the LESS layout")
    parser.add_argument("--demo", type=Path, default=DEMO_DATA, help="the demo data, held out of training")
    parser.add_argument("--output", type=Path, default=DEMO_DATA.with_name("model"))
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "gistselect_demo_model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    recipe = replace(Recipe(), tokens=arguments.tokens)
    torch.set_num_threads(arguments.threads)
    corpus = read_corpus(arguments.data, arguments.demo, recipe)
    print(f"{len(corpus.training):,} rows eligible, {len(corpus.validation):,} for validation", flush=True)
    tokenizer = train_tokenizer(fitting_texts(corpus.training, recipe), recipe)
    encoded = encode(tokenizer, corpus.training)
    lengths = [len(example["input_ids"]) for example in encoded]
    kept = rows_within_budget(corpus.training, lengths, recipe)
    rows, examples = [corpus.training[i] for i in kept], [encoded[i] for i in kept]
    print(f"{len(rows):,} rows to train on, {predicted_tokens(examples):,} tokens", flush=True)
    model = build_model(recipe, tokenizer)
    folder = run_folder(arguments.checkpoints, recipe, rows)
    validation = encode(tokenizer, corpus.validation[::5])
    trainer = build_trainer(model, tokenizer, recipe, folder, examples, validation)
    run = train(trainer, examples)
    export(model, tokenizer, arguments.output)
    shipped = LlamaForCausalLM.from_pretrained(arguments.output, dtype=torch.float32)
    judge = build_trainer(shipped, tokenizer, recipe, folder)
    losses = describe(judge, tokenizer, corpus, rows, examples, run, recipe, arguments.demo, arguments.output)
    print(json.dumps(losses, indent=1))


if __name__ == "__main__":
    main()
