"""The curvature of an adapter: second moments of its per-example gradients, in EK-FAC's eigenbasis.

It is estimated in two passes over a sample, block by block within `gradient_memory_gb`, and read back from the disk
one block at a time: the factors of a wide layer are as large as its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistselect.errors import ArtifactMismatchError, DataError
from gistselect.linalg.curvature import BlockCurvature, eigenvectors
from gistselect.linalg.products import product
from gistselect.model.batches import Batch
from gistselect.model.factors import Factors, ParameterBlock
from gistselect.model.gradients import GradientEngine
from gistselect.model.sinks import Sink, Site, parameter_groups
from gistselect.types import Example

PART = "part-{:05d}.safetensors"
SIDES = ("left", "right")
FLOOR = 1e-10
"""A matrix with a mean curvature below this share of the largest has gradients of rounding noise alone."""


class MomentSink(Sink):
    """Sums over tokens of δ δᵀ (out, out) and a aᵀ (in, in), in float64.

    All tokens count that a gradient is summed over, the prompt's too: what a loss on the answer teaches a layer comes
    through them, and eigenvectors must span them.
    """

    def __init__(self, group: Sequence[int]) -> None:
        self.blocks = self.group = tuple(group)

    def start(self, n: int, site: Site) -> None:
        self.precise = site.dtype
        self.values = {
            block: [
                torch.zeros(d, d, dtype=torch.float64, device=site.devices[block]) for d in site.blocks[block].shape
            ]
            for block in self.group
        }

    def add(self, block: int, factors: Factors) -> None:
        for total, factor in zip(self.values[block], (factors.left, factors.right), strict=True):
            tokens = _tokens(factor, factors.batch)
            total += product(tokens.T, tokens, self.precise)

    @property
    def is_finite(self) -> bool:
        return all(bool(total.isfinite().all()) for pair in self.values.values() for total in pair)


class SquareSink(Sink):
    """Sums over examples of squared gradients (out, in), in a basis for each block."""

    def __init__(self, bases: Mapping[int, BlockCurvature]) -> None:
        self.bases, self.blocks = bases, bases.keys()

    def start(self, n: int, site: Site) -> None:
        self.dtype = site.dtype
        self.values = {block: basis.second.double() * 0 for block, basis in self.bases.items()}

    def add(self, block: int, factors: Factors) -> None:
        self.values[block] += self.bases[block].rotated(factors.gradients(self.dtype)).square_().sum(dim=0)


def estimate_curvature(engine: GradientEngine, examples: Sequence[Example], folder: Path) -> dict[str, float]:
    """Write each block's `BlockCurvature` into `folder`; its number of rows, their mean squared gradient, and the
    largest mean over the directions of a block.

    Rows whose gradient is not finite are left out. Raises `DataError` if none is left.
    """
    from safetensors.torch import save_file

    limit = engine.config.gradient_memory_gb * 1e9
    trace = largest = 0.0
    for index, group in enumerate(parameter_groups(engine.parameters, limit, size=_held_bytes)):
        moments = MomentSink(group)
        engine.stream(examples, [moments])
        if not moments.is_finite:
            examples = _whole(engine, examples)
            engine.stream(examples, [moments])
        bases = {block: _eigenbasis(pair, engine.dtype) for block, pair in moments.values.items()}
        squares = SquareSink(bases)
        engine.stream(examples, [squares])
        tensors = {}
        for block, total in squares.values.items():
            second = total / len(examples)
            trace += float(second.sum())
            largest = max(largest, float(second.mean()))
            name = engine.parameters[block].name
            parts = {"left": bases[block].left, "right": bases[block].right, "second": second.to(engine.dtype)}
            tensors |= {f"{name}/{part}": value.cpu().contiguous() for part, value in parts.items()}
        save_file(tensors, folder / PART.format(index))
    return {"rows": len(examples), "mean_squared_gradient": trace, "largest_mean_curvature": largest}


class Preconditioner:
    """Multiplies directions by the damped inverse of a stored curvature, block by block."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], n_columns: int, damping: float) -> None:
        """`facts` are those of `estimate_curvature`.

        Raises `ArtifactMismatchError` if the folder holds no curvature.
        """
        self.damping, self.floor = damping, FLOOR * facts["largest_mean_curvature"]
        self.gram: NDArray[np.float64] = np.zeros((n_columns, n_columns))
        """Inner products of the directions made so far, H⁻¹ q."""
        self.null_covariance: NDArray[np.float64] = np.zeros((n_columns, n_columns))
        """Covariance of <g, H⁻¹ q> for gradients g of mean zero with the curvature's second moments."""
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob(PART.format(0).replace("00000", "*"))):
            self._files |= dict.fromkeys(_names(path), path)
        if not self._files:
            raise ArtifactMismatchError(f"{folder} holds no curvature; delete its parent folder and run again.")

    def __call__(self, block: ParameterBlock, directions: Tensor) -> Tensor:
        """H⁻¹ q (p_b, k) for directions q (p_b, k) of a block.

        Raises `ArtifactMismatchError` if the curvature is of another adapter.
        """
        curvature = self._load(block, directions)
        coordinates = curvature.rotated(directions.T.reshape(-1, *block.shape))
        solved = coordinates * curvature.inverse(self.damping, self.floor)
        flat, second = solved.flatten(1).double(), curvature.second.flatten().double()
        self.gram += (flat @ flat.T).cpu().numpy()
        self.null_covariance += ((flat * second) @ flat.T).cpu().numpy()
        return curvature.restored(solved).flatten(1).T

    def _load(self, block: ParameterBlock, like: Tensor) -> BlockCurvature:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self._files[block.name]), framework="pt") as file:
                parts = {part: file.get_tensor(f"{block.name}/{part}") for part in (*SIDES, "second")}
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtifactMismatchError(
                f"the stored curvature does not hold {block.name!r} ({error}); it is of another adapter or damaged: "
                "delete its folder and run again."
            ) from None
        return BlockCurvature(**{part: value.to(like.device, like.dtype) for part, value in parts.items()})


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return [name.rpartition("/")[0] for name in file.keys()]  # noqa: SIM118


def _eigenbasis(moments: Sequence[Tensor], dtype: torch.dtype) -> BlockCurvature:
    left, right = (eigenvectors(moment).to(dtype) for moment in moments)
    return BlockCurvature(left=left, right=right, second=left.new_zeros(len(left), len(right)))


def _held_bytes(block: ParameterBlock) -> float:
    """Sums and eigenvectors of both sides in float64, and squares of the gradients."""
    return 8 * (2 * sum(side**2 for side in block.shape) + block.size)


def _tokens(factor: Tensor, batch: Batch) -> Tensor:
    """(t, width) rows of a factor (n_rows, t_padded, width) without the padding."""
    flat = factor.flatten(0, 1)
    if len(batch.lengths) == 1 or batch.packed:
        return flat
    inside = torch.arange(factor.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]
    return flat[inside.flatten().to(flat.device)]


def _whole(engine: GradientEngine, examples: Sequence[Example]) -> list[Example]:
    """The examples with a finite gradient."""
    measured = engine.collect(examples, [])
    finite = np.isfinite(measured.loss) & np.isfinite(measured.gradient_norm)
    kept = [example for example, whole in zip(examples, finite, strict=True) if whole]
    if not kept:
        raise DataError("no row of the pool's sample has a finite gradient; use --dtype float32.")
    return kept
