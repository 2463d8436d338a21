"""What the ablations vary, one thing at a time, and the models and adapters that are made for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistselect.files import replacing_folder
from study_setup import ADAPTER, model_folder

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to score and select, and the question that it answers."""

    question: str
    name: str
    representation: str = "gist"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the run that differ from the reference, GIST with its defaults."""
    trained: bool = True
    """Whether its selection is trained on. Where little changes, the finer LDS says what there is to say."""


def variants(smollm2: bool, warmup: Mapping[str, Any], work: Path) -> list[Variant]:
    """Every variant; `warmup` is the reference's. Files that some need are made in `work` when they are asked for."""
    one_pass = [
        ("reference", "GIST, 95 % of the variance", "gist", True),
        ("no gradient", "BM25", "bm25", True),
        ("no gradient", "loss drop", "loss_drop", True),
        ("no gradient", "RDS+", "rds", True),
        ("EK-FAC", "damping 0.1", "ekfac:rows=256", True),
        ("EK-FAC", "damping 0.01", "ekfac:rows=256,damping=0.01", False),
        ("EK-FAC", "damping 1", "ekfac:rows=256,damping=1", False),
        ("EK-FAC", "divided by the gradient's length", "ekfac:rows=256,divide_by_norm=true", False),
        ("LESS", "8,192 wide, 8 entries a row", "less:nonzeros=8", True),
        ("LESS", "1,024 wide, 8 entries a row", "less:dimension=1024,nonzeros=8", False),
        ("LESS", "1,024 wide, dense", "less:dimension=1024", False),
        ("rank", "10 directions", "gist:rank=10", False),
        ("rank", "all directions", "gist:rank=1.0", False),
        ("energy", "weighted by captured energy", "gist:energy_weighting=true", False),
        ("sketch", "8 wide", "gist:sketch=8", False),
        ("sketch", "16 wide", "gist:sketch=16", False),
        ("sketch", "32 wide", "gist:sketch=32", False),
    ]
    rate = warmup["learning_rate"]
    proxies = [("half of its layers", half_of_its_layers), *([("the demo model", demo_model)] if smollm2 else [])]
    return [
        *(
            Variant(question=question, name=name, representation=one, trained=trained)
            for question, name, one, trained in one_pass
        ),
        Variant(
            question="queries together or apart", name="nearest single query", options={"selector": "doubly_greedy"}
        ),
        Variant(
            question="queries together or apart",
            name="queries take turns",
            options={"selector": "round_robin:turns=queries"},
            trained=False,
        ),
        Variant(
            question="warm-up",
            name="none, second factor random",
            options={"adapter": made(random_adapter, smollm2, work)},
        ),
        *(
            Variant(
                question="scored by a smaller model",
                name=name,
                options={"model": made(make, smollm2, work), "template": "tulu"},
            )
            for name, make in proxies
        ),
        *(
            Variant(
                question="number of queries",
                name=f"{number} queries",
                options={"max_queries": number},
                trained=number == 10,
            )
            for number in (10, 30, 100)
        ),
        Variant(question="warm-up", name="4 epochs of 4", options={"warmup_checkpoints": (4,)}),
        *(
            Variant(
                question="warm-up",
                name=f"learning rate {rate * factor:.0e}",
                options={"warmup": {**warmup, "learning_rate": rate * factor}},
                trained=False,
            )
            for factor in (0.1, 5)
        ),
        *(
            Variant(question="length", name=f"cut at {most} tokens", options={"max_length": most}, trained=False)
            for most in ((128, 512) if smollm2 else (128, 256))
        ),
        Variant(
            question="template",
            name="plain Tulu" if smollm2 else "the model's own",
            options={"template": "tulu" if smollm2 else "model"},
            trained=False,
        ),
    ]


def made(make: Callable[[bool, Path], Path | str], smollm2: bool, work: Path) -> Callable[[], str]:
    """An option whose value is a folder that is made when the variant's turn comes."""
    return lambda: str(make(smollm2, work))


def demo_model(smollm2: bool, work: Path) -> str:
    """The embedded model, a 36th of SmolLM2."""
    return model_folder(demo=True)


def random_adapter(smollm2: bool, work: Path) -> Path:
    """An untrained adapter whose second factor is random instead of zero, so that both factors have gradients."""
    folder = work / f"random-adapter-{'smollm2' if smollm2 else 'demo'}"
    if not folder.exists():
        import torch

        from gistselect.model.adapters import AdapterConfig, adapter_parameters, attach_adapter
        from gistselect.model.config import ModelConfig
        from gistselect.model.loading import load_model

        bare = load_model(ModelConfig(path=model_folder(not smollm2), device="cpu", dtype="float32"))
        adapted = attach_adapter(bare, AdapterConfig(**ADAPTER), SEED)
        generator = torch.Generator().manual_seed(SEED)
        for name, value in adapter_parameters(adapted.model).items():
            if ".lora_B." in name:
                torch.nn.init.normal_(value, std=0.01, generator=generator)
        with replacing_folder(folder) as part:
            adapted.model.save_pretrained(part)
    return folder


def half_of_its_layers(smollm2: bool, work: Path) -> Path:
    """The lower half of the layers of the model that is trained, with its embeddings and its head."""
    folder = work / f"half-{'smollm2' if smollm2 else 'demo'}"
    if not folder.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        whole = model_folder(not smollm2)
        model: Any = AutoModelForCausalLM.from_pretrained(whole)
        kept = len(model.model.layers) // 2
        model.model.layers = model.model.layers[:kept]
        model.config.num_hidden_layers = kept
        if layer_types := getattr(model.config, "layer_types", None):
            model.config.layer_types = layer_types[:kept]
        with replacing_folder(folder) as part:
            model.save_pretrained(part)
            AutoTokenizer.from_pretrained(whole).save_pretrained(part)
    return folder
