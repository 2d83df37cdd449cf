"""The factor of a Hessian's inverse that says how an error of rounding spreads."""

from __future__ import annotations

import torch
from torch import Tensor

from records.errors import InputError

INVERTED = 512  # rows of a triangle that is inverted in one go


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse; its rows say how an error spreads to later columns.

    With the order of rows and columns turned round, H = L L^T; turned back, L is an upper triangle R with H = R R^T,
    and so R^-1 is the factor: half the work of inverting H and factorizing that.

    Inputs that never fire have a zero diagonal and get 1. The damping grows tenfold until the factor exists.
    """
    hessian = hessian.flip(0, 1)
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    mean = diagonal.mean().item()
    added = 0.0
    for attempt in range(6):
        diagonal += mean * damping * 10**attempt - added
        added = mean * damping * 10**attempt
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            del hessian, diagonal  # as large as what follows
            return inverse_of_triangle(lower).flip(0, 1)
    raise InputError("the calibration Hessian is not positive definite; use more or more varied calibration text")


def inverse_of_triangle(lower: Tensor) -> Tensor:
    """Of a lower triangle: halves by themselves, and what is below them by two products."""
    size = len(lower)
    if size <= INVERTED:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, eye, upper=False)
    half = size // 2
    first, last = inverse_of_triangle(lower[:half, :half]), inverse_of_triangle(lower[half:, half:])
    found = torch.zeros_like(lower)
    found[:half, :half], found[half:, half:] = first, last
    found[half:, :half] = (last @ (lower[half:, :half] @ first)).neg_()
    return found
