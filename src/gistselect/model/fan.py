"""One backward pass, any number of sinks: products are formed once, and gradients wait in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gistselect.model.batches import Batch
from gistselect.model.factors import Factors
from gistselect.model.sinks import GatheringCollector, Sink, Site


class Fan:
    """Hands the gradients of each batch to every sink that wants them."""

    def __init__(self, sinks: Sequence[Sink], n: int, site: Site) -> None:
        for sink in sinks:
            sink.start(n, site)
        self._sinks = sinks
        by_format: dict[torch.dtype, list[GatheringCollector]] = {}
        for sink in sinks:
            if isinstance(sink, GatheringCollector):
                by_format.setdefault(sink.dtype, []).append(sink)
        waiting = [_Waiting(gathering, n, site, len(by_format)) for gathering in by_format.values()]
        at_once = [sink for sink in sinks if not isinstance(sink, GatheringCollector)]
        # Those that keep gradients come first: products are then formed where they wait.
        self._takers: list[Sink] = [*waiting, *at_once]

    def begin(self, batch: Batch) -> None:
        """A batch begins."""
        self._batch = batch
        for sink in self._takers:
            sink.begin(batch.rows)

    def __call__(self, block: int, left: Tensor, right: Tensor) -> None:
        """The factors (n_rows, width, out) and (n_rows, width, in) of a block's gradients in this batch."""
        factors = Factors(left, right, self._batch.on(left.device))
        for sink in self._takers:
            if block in sink.blocks:
                sink.add(block, factors)

    def finish(self) -> None:
        """No more batches for now."""
        for sink in self._takers:
            sink.finish()

    def broken(self) -> Tensor | None:
        """Which examples (n,) hold NaN or infinity in any sink; None if a sink does not keep examples apart."""
        found = [sink.broken() for sink in self._sinks]
        known = [broken for broken in found if broken is not None]
        return torch.stack(known).any(dim=0) if found and len(known) == len(found) else None


class _Waiting(Sink):
    """Gradients of small batches, kept for all sinks that want many together, in one number format.

    They wait in segments of as many examples as the most impatient sink wants. A segment is the same whatever other
    sinks there are, so that their results are too; those that want more get several segments at once.
    """

    def __init__(self, gathering: Sequence[GatheringCollector], n: int, site: Site, n_formats: int) -> None:
        self.blocks = range(len(site.blocks))
        self._dtype, self._devices = gathering[0].dtype, site.devices
        self._sizes = [block.size for block in site.blocks]
        self._segment = site.held_rows
        self._patient = [sink for sink in gathering if sink.rows_wanted > self._segment]
        self._impatient = [sink for sink in gathering if sink.rows_wanted <= self._segment]
        fitting = int(site.gradient_bytes / n_formats / (site.n_parameters * self._dtype.itemsize))
        wanted = min(n, fitting) if self._patient else 0
        self._capacity = max(self._segment, wanted)
        self._gradients: dict[int, Tensor] = {}
        """Gradients (capacity, p_b) of each block."""
        self._rows: list[Tensor] = []
        """Examples of each waiting batch."""
        self._opened = 0
        """Where the rows and batches of the segment at hand begin."""
        self._opened_batches = 0
        self._place = slice(0, 0)
        """Where those of the batch at hand wait."""

    def begin(self, rows: Tensor) -> None:
        for sink in [*self._patient, *self._impatient]:
            sink.begin(rows)
        count, self.rows = len(rows), rows
        if self._place.stop - self._opened + count > self._segment:
            self._close_segment()
        if self._place.stop == self._opened and self._opened + max(count, self._segment) > self._capacity:
            self._flush()
        self._whole = count >= self._segment
        """The batch is a segment of its own: impatient sinks need not wait."""
        self._held = bool(self._patient) if self._whole else True
        self._held &= count <= self._capacity
        if self._held:
            self._place = slice(self._place.stop, self._place.stop + count)
            self._rows.append(rows)
            if self._whole:
                self._opened, self._opened_batches = self._place.stop, len(self._rows)

    def add(self, block: int, factors: Factors) -> None:
        gradients = factors.gradients(self._dtype, self._room(block) if self._held else None).flatten(1)
        if self._whole:
            for sink in self._impatient:
                sink.take(block, gradients, self.rows)
        if not self._held:
            for sink in self._patient:
                sink.take(block, gradients, self.rows)

    def finish(self) -> None:
        self._close_segment()
        self._flush()

    def _room(self, block: int) -> Tensor:
        if block not in self._gradients:
            shape = self._capacity, self._sizes[block]
            self._gradients[block] = torch.empty(shape, dtype=self._dtype, device=self._devices[block])
        return self._gradients[block][self._place]

    def _close_segment(self) -> None:
        end = self._place.stop
        if end > self._opened:
            self._hand(self._impatient, slice(self._opened, end), self._rows[self._opened_batches :])
        self._opened, self._opened_batches = end, len(self._rows)

    def _flush(self) -> None:
        if self._rows:
            self._hand(self._patient, slice(0, self._place.stop), self._rows)
            self._rows = []
        self._opened = self._opened_batches = 0
        self._place = slice(0, 0)

    def _hand(self, sinks: Sequence[GatheringCollector], place: slice, batches: Sequence[Tensor]) -> None:
        if sinks:
            rows = torch.cat(list(batches))
            for block, gradients in self._gradients.items():
                for sink in sinks:
                    sink.take(block, gradients[place], rows)
