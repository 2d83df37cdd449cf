"""GPTQ with a Hessian on both sides: errors are spread over the columns and over the rows to come.

    least tr(G E H E^T),    H = sum x x^T over what the matrix reads,    G = sum g g^T over gradients of what it makes

YAQA (Tseng et al., arXiv 2505.22988) rounds by the LDL factors of both. Here some rows at a time, a band, are rounded
as GPTQ does; what that leaves of them goes to the bands below by G's own inverse factor. A band may round some columns
as soon as the bands above it have, so all bands are at work at once, each one step behind the band above it: as many
small operations as the matrix has columns and bands, not their product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.grids import Grid
from supernet.quantizers.base import sides

BANDS, LEAST = 8, 32  # at most so many bands, of at least so many rows
STEP = 32  # columns that a band rounds between two looks at the others, where groups are no longer


@dataclass(frozen=True)
class Wave:
    """`across` and `down` are factors of the inverses of both Hessians, as `inverse_factor` has them, `down` None where
    rows have nothing to do with each other; `importance` is the diagonal of the inputs' one, by which ranges are
    clipped where `clip` says so."""

    grid: Grid
    group_size: int
    importance: Tensor
    across: Tensor
    down: Tensor | None
    clip: bool

    def solve(self, weight: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes `(choices, rows, columns)`, scales and zeros `(choices, rows, groups)` and what was rounded, for
        `weight` `(rows, columns)` at each of `bits` `(choices,)`."""
        rows, columns = weight.shape
        state = _State.of(weight, len(bits), self.group_size)
        width, size = self._width(columns), max(LEAST, -(-rows // BANDS))
        size = rows if self.down is None else size  # nothing goes from row to row
        bands = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        steps = columns // width
        for time in range(steps + len(bands) - 1):
            at_work = range(max(0, time - steps + 1), min(len(bands), time + 1))
            tiles = [(bands[b], slice((time - b) * width, (time - b + 1) * width)) for b in at_work]
            full = [tile for tile in tiles if tile[0].stop - tile[0].start == size]
            for some in (full, [tile for tile in tiles if tile not in full]):  # the last band may be lower
                if some:
                    self._round(state, some, bits)
        return state.found()

    def _width(self, columns: int) -> int:
        """Of a step: whole blocks of the format, about STEP columns, and a divisor of all."""
        span = max(self.group_size, self.grid.format.block)
        fits = [span * n for n in range(1, max(1, STEP // span) + 1) if columns % (span * n) == 0]
        return fits[-1]

    def _round(self, state: _State, tiles: list[tuple[slice, slice]], bits: Tensor) -> None:
        """Tiles of several bands, side by side: `(tiles, width, choices * rows)`."""
        choices, high = len(bits), tiles[0][0].stop - tiles[0][0].start
        rest = torch.stack([state.rest[here, :, band].flatten(1) for band, here in tiles])
        across = torch.stack([self.across[here, here] for _, here in tiles])
        wide = bits.repeat_interleave(high)
        top = (2**wide - 1).to(rest.dtype)
        codes, errors = torch.empty_like(rest), torch.empty_like(rest)
        span = max(self.group_size, self.grid.format.block)
        settled: list[tuple[Tensor, Tensor]] = []
        for column in range(rest.shape[1]):
            if column % self.group_size == 0:
                if column % span == 0:
                    settled = [
                        self._sides(part[column : column + span], here, column, wide)
                        for part, (_, here) in zip(rest, tiles, strict=True)
                    ]
                sides = [
                    self._again(part, here, column, wide, known)
                    for part, (_, here), known in zip(rest, tiles, settled, strict=True)
                ]
                scale, zero = (torch.stack(parts) for parts in zip(*sides, strict=True))
                for (band, here), s, z in zip(tiles, scale, zero, strict=True):
                    state.settle((here.start + column) // self.group_size, band, s, z)
            codes[:, column] = code = self.grid.encode_below(rest[:, column], scale, zero, top)
            error = (rest[:, column] - (code - zero) * scale) / across[:, column, column, None]
            rest[:, column + 1 :].baddbmm_(across[:, column, column + 1 :, None], error[:, None], alpha=-1)
            errors[:, column] = error
        for number, (band, here) in enumerate(tiles):
            shape = (-1, choices, high)
            state.put(band, here, codes[number].view(shape), rest[number].view(shape))
            self._spread(state, band, here, errors[number])

    def _sides(self, weight: Tensor, here: slice, column: int, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zeros `(rows, groups)` of the block that begins at a column, before any of it is rounded."""
        groups, importance = weight.T.unflatten(1, (-1, self.group_size)), self._importance(here, column, len(weight))
        return sides(self.grid, groups, bits, importance, self.clip)

    def _again(
        self, rest: Tensor, here: slice, column: int, bits: Tensor, settled: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Of one group `(rows,)`, where errors of its block's groups before have moved it."""
        number = column % max(self.group_size, self.grid.format.block) // self.group_size
        if number == 0 or not self.clip:
            return settled[0][:, number], settled[1][:, number]
        group = rest[column : column + self.group_size].T.unflatten(1, (1, -1))
        importance = self._importance(here, column, self.group_size)
        return self.grid.again(group, bits, importance, *settled, number)

    def _importance(self, here: slice, column: int, count: int) -> Tensor:
        start = here.start + column
        return self.importance[start : start + count].view(-1, self.group_size)

    def _spread(self, state: _State, band: slice, here: slice, errors: Tensor) -> None:
        """What a tile's rounding left, over the columns to come of its rows and over the rows to come."""
        later = slice(here.stop, None)
        change = self.across[here, later].T @ errors
        state.rest[later, :, band] -= change.view(-1, *state.rest[here, :, band].shape[1:])
        if self.down is None:
            return
        left = state.aim[here, :, band] - state.weights(band, here)
        below = slice(band.stop, None)
        spread = torch.linalg.solve_triangular(self.down[band, band], left, upper=True, left=False)
        change = spread @ self.down[band, below]
        state.rest[here, :, below] -= change
        state.aim[here, :, below] -= change


@dataclass(frozen=True)
class _State:
    """All of `(columns, choices, rows)` but scales and zeros, `(groups, choices, rows)`: the band and the columns at
    hand lie in few pieces. `aim` has what came from rows above, `rest` what came from columns before as well."""

    aim: Tensor
    rest: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor

    @classmethod
    def of(cls, weight: Tensor, choices: int, group_size: int) -> _State:
        aim = weight.T.unsqueeze(1).repeat(1, choices, 1)
        groups = aim.new_empty(len(aim) // group_size, *aim.shape[1:])
        return cls(aim, aim.clone(), torch.empty_like(aim, dtype=torch.uint8), groups, groups.clone())

    def settle(self, group: int, band: slice, scale: Tensor, zero: Tensor) -> None:
        self.scale[group, :, band], self.zero[group, :, band] = (p.view(len(self.scale[0]), -1) for p in (scale, zero))

    def put(self, band: slice, here: slice, codes: Tensor, moved: Tensor) -> None:
        self.codes[here, :, band], self.rest[here, :, band] = codes, moved

    def weights(self, band: slice, here: slice) -> Tensor:
        """That a tile's codes are."""
        size = len(self.codes) // len(self.scale)
        groups = slice(here.start // size, here.stop // size)
        scale, zero = (part[groups, :, band].repeat_interleave(size, 0) for part in (self.scale, self.zero))
        return (self.codes[here, :, band] - zero) * scale

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes, scale, zero, moved = (p.permute(1, 2, 0) for p in (self.codes, self.scale, self.zero, self.rest))
        return codes, scale, zero, moved
