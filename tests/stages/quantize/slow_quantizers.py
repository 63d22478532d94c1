"""GPTQ and AWQ from their papers in float64, slowly and without the code under test.

Shapes: R rows, C columns, G groups a row, N positions.
"""

from __future__ import annotations

import numpy as np

Matrix = np.ndarray


def symmetric_scales(weight_RC: Matrix, bits: int, group: int) -> Matrix:
    """Steps of max|w| over half the range of codes, one for each weight (R, C)."""
    rows, columns = weight_RC.shape
    peaks_RG = np.abs(weight_RC.reshape(rows, columns // group, group)).max(axis=2)
    return np.repeat(peaks_RG / ((2**bits - 1) / 2), group, axis=1)


def round_symmetric(weight: Matrix, scales: Matrix, bits: int) -> Matrix:
    """The nearest multiple of the step within -2^(bits-1) to 2^(bits-1) - 1 steps."""
    return np.clip(np.round(weight / scales), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scales


def round_asymmetric(weight_RC: Matrix, bits: int, group: int) -> Matrix:
    """The nearest point of each group's own grid between its smallest and its largest weight, zero included."""
    rows, columns = weight_RC.shape
    grouped = weight_RC.reshape(rows, columns // group, group)
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    step = ((high - low) / (2**bits - 1))[..., None]
    zero = np.round(-low[..., None] / step)
    return ((np.clip(np.round(grouped / step) + zero, 0, 2**bits - 1) - zero) * step).reshape(rows, columns)


def gptq(weight_RC: Matrix, inputs_NC: Matrix, *, bits: int, group: int, damping: float = 0.01) -> Matrix:
    """Optimal brain quantization, columns in order of falling diagonal, scales fixed beforehand.

    At each column the inverse Hessian of the columns left is computed anew (the paper, arXiv 2210.17323, equations 2
    and 3, gets all of them from one Cholesky factor). Rounding w_j moves the columns left by
    -(w_j - q_j) / [H_F^-1]_jj * [H_F^-1]_j,:.
    """
    hessian_CC = inputs_NC.T @ inputs_NC
    order = np.argsort(-np.diag(hessian_CC), kind="stable")
    hessian_CC = (hessian_CC + damping * np.mean(np.diag(hessian_CC)) * np.eye(len(hessian_CC)))[np.ix_(order, order)]
    scales_RC = symmetric_scales(weight_RC, bits, group)[:, order]
    weight_RC = weight_RC[:, order].copy()
    for j in range(len(order)):
        row = np.linalg.inv(hessian_CC[j:, j:])[0]
        rounded_R = round_symmetric(weight_RC[:, j], scales_RC[:, j], bits)
        weight_RC[:, j:] -= np.outer((weight_RC[:, j] - rounded_R) / row[0], row)
        weight_RC[:, j] = rounded_R
    return weight_RC[:, np.argsort(order)]


def awq(weight_RC: Matrix, inputs_NC: Matrix, *, bits: int, group: int, steps: int) -> tuple[Matrix, Matrix]:
    """The rounded scaled weights and the scales (C,) whose layer output is nearest to what it was.

    s = mean|x|^r / sqrt(max s * min s), r = 0 to 1 in equal steps (arXiv 2306.00978, equations 4 and 5; the
    normalization is the authors' code's).
    """
    mean_C = np.abs(inputs_NC).mean(axis=0)
    tried = []
    for step in range(steps):
        scale_C = np.maximum(mean_C ** (step / (steps - 1)), 1e-4)
        scale_C /= np.sqrt(scale_C.max() * scale_C.min())
        rounded_RC = round_asymmetric(weight_RC * scale_C, bits, group)
        moved = (rounded_RC / scale_C - weight_RC) @ inputs_NC.T
        tried.append(((moved**2).mean(), rounded_RC, scale_C))
    _, rounded_RC, scale_C = min(tried, key=lambda one: one[0])
    return rounded_RC, scale_C
