"""The task subspace: a low-rank factorisation of the query gradients through their Gram matrix (GIST section 4).

Query gradients are n_query rows of p numbers with n_query << p, so everything is computed from the
n_query x n_query Gram matrix; the p-dimensional matrix itself is never needed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistselect.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The leading left singular vectors and singular values of the query gradients `G = U diag(s) V'`."""

    left: FloatArray
    """(n_query, r) orthonormal columns, `U_r`."""
    singular_values: FloatArray
    """(n_query,) all of them, descending; the first `rank` span the subspace."""
    rank: int

    @property
    def basis_weights(self) -> FloatArray:
        """(n_query, r) weights W with basis `V = G' W`, so that the basis can be built by streaming the queries."""
        return self.left / self.singular_values[: self.rank]

    @property
    def query_features(self) -> FloatArray:
        """(n_query, r) coordinates of the queries in the basis, `U_r diag(s_r) = G V`."""
        return self.left * self.singular_values[: self.rank]

    @property
    def explained_variance(self) -> FloatArray:
        """(n_query,) cumulative share of the squared query gradients that the first i+1 directions keep."""
        return cumulative_variance(self.singular_values)


def cumulative_variance(singular_values: FloatArray) -> FloatArray:
    """(n,) cumulative share of the squared singular values."""
    energy = np.cumsum(singular_values**2)
    return energy / energy[-1]


def rank_for_variance(singular_values: FloatArray, share: float) -> int:
    """Smallest rank whose directions keep at least `share` of the squared singular values."""
    # The comparison tolerates rounding, so that share=1.0 means "all that is there" and not "one too many".
    return int(np.argmax(cumulative_variance(singular_values) >= share - 1e-12)) + 1


def factor_gram(gram: FloatArray, *, rank: int | float, rtol: float) -> Subspace:
    """Factor the Gram matrix (n_query, n_query) of the query gradients (GIST section 4).

    `rank` is a number of directions (int) or the share of variance to keep (float in (0, 1]). Directions with a
    singular value below `rtol` times the largest are rounding noise, as duplicate or collinear queries produce,
    and are never kept; nor are more directions kept than there are.

    Raises `DataError` if the matrix is not finite or all queries have a zero gradient, `ConfigError` for a rank
    that is neither a count nor a share.
    """
    n_query = len(gram)
    if not np.isfinite(gram).all():
        rows = np.flatnonzero(~np.isfinite(gram).all(axis=1))
        raise DataError(f"{len(rows)} of {n_query} query gradients are not finite, first at query {rows[0]}.")
    if rank <= 0 or (isinstance(rank, float) and rank > 1):
        raise ConfigError(f"rank={rank} is neither a number of directions (1, 2, …) nor a share of variance in (0, 1].")

    eigenvalues, eigenvectors = np.linalg.eigh((gram + gram.T) / 2)
    singular_values = np.sqrt(np.clip(eigenvalues[::-1], 0, None))
    if singular_values[0] == 0:
        raise DataError(
            "every query gradient is zero. A fresh adapter has no gradient in its first factor: run the warm-up, "
            "or give --adapter with trained weights."
        )
    requested = rank if isinstance(rank, int) else rank_for_variance(singular_values, rank)
    kept = min(requested, int((singular_values > rtol * singular_values[0]).sum()))
    return Subspace(left=eigenvectors[:, ::-1][:, :kept], singular_values=singular_values, rank=kept)


def group_means(features: FloatArray, groups: list[str]) -> tuple[tuple[str, ...], FloatArray]:
    """Mean of the raw query features (n_query, r) of each group, as (names, (n_group, r)), in first-seen order."""
    names = tuple(dict.fromkeys(groups))
    labels = np.asarray(groups)
    return names, np.stack([features[labels == name].mean(axis=0) for name in names])
