"""Pruning rules written from their equations in float64, slowly and without the code under test; and inputs from hooks.

Shapes: R rows, C columns, N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

Matrix = np.ndarray


def lowest_in_rows(scores_RC: Matrix, count: int) -> Matrix:
    """The mask of the `count` lowest scores of every row; of equals the first."""
    mask_RC = np.zeros(scores_RC.shape, dtype=bool)
    for row, scores_C in enumerate(scores_RC):
        for column in sorted(range(len(scores_C)), key=lambda c, s=scores_C: (s[c], c))[:count]:
            mask_RC[row, column] = True
    return mask_RC


def lowest_in_groups(scores_RC: Matrix, zeros: int, size: int) -> Matrix:
    """The mask of the `zeros` lowest in every `size` consecutive columns of a row."""
    return lowest_in_rows(scores_RC.reshape(-1, size), zeros).reshape(scores_RC.shape)


def wanda_scores(weight_RC: Matrix, inputs_NC: Matrix) -> Matrix:
    """S_ij = |W_ij| * ||X_j||_2 (arXiv 2306.11695, equation 1)."""
    return np.abs(weight_RC) * np.sqrt((inputs_NC**2).sum(axis=0))


def surgeon(
    weight_RC: Matrix, inputs_NC: Matrix, *, sparsity: float, block: int = 128, damping: float = 0.01
) -> Matrix:
    """SparseGPT by the definition of the optimal brain surgeon: at each column the inverse Hessian of those left.

    The paper gets the same inverses from one Cholesky factor; here each is inverted anew. For a block of columns the
    error of removing w_j alone is w_j^2 / [H_F^-1]_jj with F the columns from j on; the lowest `sparsity` of the block
    go, and the weight at the threshold goes too, as in the authors' released code. Removing w_j moves the columns of F
    by -w_j / [H_F^-1]_jj * [H_F^-1]_j,: (arXiv 2301.00774, equations 2 to 4).
    """
    hessian_CC = inputs_NC.T @ inputs_NC
    hessian_CC = hessian_CC + damping * np.mean(np.diag(hessian_CC)) * np.eye(len(hessian_CC))
    weight_RC = weight_RC.copy()
    columns = weight_RC.shape[1]
    first_rows = [np.linalg.inv(hessian_CC[j:, j:])[0] for j in range(columns)]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = weight_RC[:, start:stop] ** 2 / np.array([first_rows[j][0] for j in range(start, stop)])
        mask = errors <= np.sort(errors, axis=None)[int(errors.size * sparsity)]
        for j in range(start, stop):
            removed_R = np.where(mask[:, j - start], weight_RC[:, j], 0.0)
            weight_RC[:, j:] -= np.outer(removed_R / first_rows[j][0], first_rows[j])
            weight_RC[mask[:, j - start], j] = 0.0
    return weight_RC


def output_error(weight_RC: Matrix, pruned_RC: Matrix, inputs_NC: Matrix) -> float:
    """|| (W - W') X ||^2 over || W X ||^2."""
    return float((((weight_RC - pruned_RC) @ inputs_NC.T) ** 2).sum() / ((weight_RC @ inputs_NC.T) ** 2).sum())


def inputs_of(model, layers: Sequence[str], blocks_NT: np.ndarray) -> dict[str, Matrix]:
    """What arrives at each of these linear layers for all blocks, one position a row, in float64."""
    import torch

    seen: dict[str, list[Matrix]] = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].double().numpy().reshape(-1, args[0].shape[-1]))
        )
        for name in layers
    ]
    with torch.no_grad():
        for block_T in blocks_NT:
            model(torch.from_numpy(block_T)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def linear_layers(model) -> list[str]:
    """The linear layers of the decoder, head excluded, in order."""
    import torch

    return [name for name, module in model.model.named_modules(prefix="model") if isinstance(module, torch.nn.Linear)]


def weights_of(folder: Path) -> dict[str, Matrix]:
    """All stored tensors in float64."""
    from safetensors.torch import load_file

    return {
        name: tensor.double().numpy()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
