"""What bases, sketches and layers will take of the devices, before a model is loaded; see docs/memory.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gistselect.model.sketch_size import ROWS, sketch_bytes, sketch_numbers
from gistselect.run.cells import Fit, Preparation
from gistselect.run.config import RunConfig
from gistselect.run.models import adapters_of
from gistselect.run.pass_groups import groups
from gistselect.run.plan import Plan

if TYPE_CHECKING:
    import torch

    from gistselect.model.adapter_shapes import NamedShapes
    from gistselect.model.basis import Room


@dataclass(frozen=True, kw_only=True)
class DeviceRoom:
    """As JSON; None for what the run does not have."""

    bases: dict[str, Any] | None = None
    """The bases of the pass that has most of them."""
    sketches: tuple[dict[str, Any], ...] = ()
    cards: list[dict[str, Any]] | None = None
    """Which parts of the model lie on which card."""
    basis_bytes: int = 0
    """Of bases that are still to be stored, at most."""
    curvature_bytes: int = 0
    """Of curvatures that are still to be stored."""


def device_room(plan: Plan, config: RunConfig) -> DeviceRoom:
    """Of a run whose pool is read; its model is read only as far as the shapes of its layers.

    Raises `ModelError` if the cards are not there or do not hold the model, or not one direction of a basis fits.
    """
    if not any(stage.reads_gradients for stage in plan.passes):
        return DeviceRoom()
    adapters = adapters_of(config, None)
    # Checkpoints of a run have adapters of one kind; the largest one needs most.
    shapes = max(adapters, key=_parameters)
    weights = _weights(config)
    n_bytes = _basis_dtype_bytes(config)
    fits = [one for stage in plan.passes for one in stage.fits if _pending(one)]
    prepared = [one for stage in plan.passes for one in stage.preparations if _pending(one)]
    return DeviceRoom(
        bases=_bases(plan, config, shapes, weights, n_bytes),
        sketches=tuple(_sketches(plan, shapes)),
        cards=_cards(weights) if len(weights.cards) > 1 else None,
        basis_bytes=sum(map(_directions, fits)) * _parameters(shapes) * n_bytes,
        curvature_bytes=sum(one.representation.prepare_bytes(list(shapes.values())) for one in prepared),
    )


def _pending(one: Fit | Preparation) -> bool:
    return one.checkpoint is not None and not one.artifact.is_complete


def _parameters(shapes: NamedShapes) -> int:
    return sum(out * inner for out, inner in shapes.values())


def _basis_dtype_bytes(config: RunConfig) -> int:
    """Bytes of a number of a basis, and of gradients that wait for it."""
    from gistselect.model.loading import resolved_precision

    return 2 if config.engine.stored_basis_dtype(**resolved_precision(config.source)) == "bfloat16" else 4


def _directions(fit: Fit) -> int:
    """Those of a basis, exactly if it is there and at most before."""
    most = fit.representation.directions(fit.queries)
    return min(most, fit.artifact.facts.get("rank", most)) if fit.artifact.is_complete else most


def _bases(
    plan: Plan, config: RunConfig, shapes: NamedShapes, weights: _Weights, n_bytes: int
) -> dict[str, Any] | None:
    """How the bases of a pass over the pool meet its gradients; the pass with most directions stands for all."""
    from gistselect.model.columns import split

    passes = []
    for group in groups(plan):
        fits = {fit.artifact.key: fit for fit in group.fits}
        cells = group.pending or group.cells
        ranks = [_directions(fits[cell.fit.key]) for cell in cells if cell.fit] if group.checkpoint else []
        passes.append([rank for rank in ranks if rank])
    ranks = max(passes, key=sum)
    if not ranks:
        return None
    p, largest = _parameters(shapes), max(out * inner for out, inner in shapes.values()) * n_bytes
    room = _room(config, shapes, weights)
    rows = min(ROWS, plan.candidates.facts["n_usable"])
    found = split(
        [(p * n_bytes, rank) for rank in ranks],
        limit=room and room.together,
        piece=room and room.piece,
        largest=largest,
        waits=rows * p * n_bytes <= config.engine.gradient_memory_gb * 1e9,
    )
    blocks = passes_taken = max(1, len(found.passes))
    if found.streamed:
        assert room is not None
        # Of the largest matrix; smaller ones go in fewer.
        blocks = sum(-(-rank // int(room.piece // largest)) for rank in ranks)
    return {
        "parameters": p,
        "directions_at_most": sum(ranks),
        "bytes_at_most": sum(ranks) * p * n_bytes,
        "limit_bytes": room and round(room.together),
        "split": found.streamed or passes_taken > 1,
        "blocks": blocks,
        "passes": passes_taken,
    }


def _room(config: RunConfig, shapes: NamedShapes, weights: _Weights) -> Room | None:
    """Memory for bases once the model is there."""
    from gistselect.model.basis import room_for_bases
    from gistselect.model.factors import ParameterBlock
    from gistselect.model.spread import part_of

    blocks = [ParameterBlock(name, shape) for name, shape in shapes.items()]
    devices = [weights.places[part_of(block.name, weights.places)] for block in blocks]
    return room_for_bases(config.engine.basis_memory_gb, blocks, devices, weights.taken)


def _sketches(plan: Plan, named: NamedShapes) -> Iterator[dict[str, Any]]:
    """Of each sketched method: what a pass holds of it, and what is stored of the pool if it is kept."""
    n_rows = plan.candidates.facts["n_usable"] * plan.share_read("gradient")
    shapes, p = list(named.values()), _parameters(named)
    for method in plan.methods:
        if (width := method.representation.sketch_width) is None:
            continue
        numbers = int(sketch_numbers(shapes, width))
        shared = {cell.features.key: cell for column in method.columns for _, cell in column.entries if not cell.fit}
        missing = [cell for cell in shared.values() if not cell.features.is_complete]
        yield {
            "method": method.label,
            "width": width,
            "numbers": numbers,
            "share": round(numbers / p, 6),
            "device_bytes": int(sketch_bytes(shapes, width)),
            "pool_bytes": round(4 * numbers * n_rows * len(missing)),
        }


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Where a model will lie that is not loaded yet."""

    cards: list[torch.device]
    places: Mapping[str, torch.device]
    """Of each part of the model; one part, "", if it has one device."""
    taken: Mapping[torch.device, float]
    """Bytes of each card; empty where nothing depends on them."""


def _weights(config: RunConfig) -> _Weights:
    """From files of the model but no weight, and only where bases are to leave room for it or it has several cards."""
    import torch

    from gistselect.model.loading import model_skeleton, resolve_device, resolve_dtype, stored_quantization
    from gistselect.model.spread import cards_of, layer_places, weight_bytes

    source = config.source
    device = resolve_device(source.device)
    places = {"": device}
    if source.cards == 1 and (device.type != "cuda" or config.engine.basis_memory_gb is not None):
        return _Weights(cards=[device], places=places, taken={})
    cards = cards_of(source, device, quantized=stored_quantization(source) is not None)
    dtype, skeleton = resolve_dtype(source.dtype, device), model_skeleton(source)
    if len(cards) > 1:
        named = layer_places(skeleton, cards, dtype, source.path)
        places = {part: torch.device(card) for part, card in named.items()}
    return _Weights(cards=cards, places=places, taken=weight_bytes(skeleton, places, dtype))


def _cards(weights: _Weights) -> list[dict[str, Any]]:
    """What lies on each of several cards."""
    import torch

    return [
        {
            "card": str(card),
            "weights_bytes": weights.taken.get(card, 0),
            "free_bytes": torch.cuda.mem_get_info(card)[0],
            "parts": [part for part, place in weights.places.items() if place == card],
        }
        for card in weights.cards
    ]
