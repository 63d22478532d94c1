"""Muon takes the step that its paper defines, for the matrices inside the layers alone, and survives a kill."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from harness.training.loop import train  # noqa: E402
from harness.training.optimizers import Optimizers  # noqa: E402
from harness.training.pace import Pace  # noqa: E402
from tests.building import context  # noqa: E402
from tests.tiny import tiny_llama  # noqa: E402


def pace(steps: int = 6, **changes) -> Pace:
    return Pace(steps=steps, tokens=1, learning_rate=0.01, **{"optimizer": "muon", "checkpoint_every": 2, **changes})


def linear() -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(6, 4)


def test_a_step_moves_every_direction_of_the_gradient_by_nearly_the_same_length() -> None:
    layer, target = linear(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    before = layer.weight.detach().clone()
    torch.sum(layer.weight * target).backward()
    Optimizers(layer, pace=pace(weight_decay=0.1)).step(rate=0.1)
    moved = before * (1 - 0.1 * 0.1) - layer.weight.detach()  # without the weight decay, 0.1 of a rate of 0.1
    # The gradient is `target`, whose nearest orthogonal matrix is U Vh of its SVD. The step is 0.2 * sqrt(6) * rate
    # times that, with singular values that five Newton-Schulz iterations bring to between 0.7 and 1.2 (Jordan 2024).
    lengths = torch.linalg.svdvals(moved) / (0.2 * 6**0.5 * 0.1)
    assert ((lengths > 0.6) & (lengths < 1.3)).all()
    left, _, right = torch.linalg.svd(target, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.97


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_heads_norms_and_frozen_matrices_are_not_muons(tmp_path: Path, tie) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, tie=tie))
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    optimizers = Optimizers(model, pace=pace())
    found = {n for n, p in model.named_parameters() if isinstance(optimizers.of(p), torch.optim.Muon)}
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = {n for n, _ in model.named_parameters() if n.split(".")[-2] in matrices}
    assert len(layers) == 14
    assert found == layers - {"model.layers.0.mlp.up_proj.weight"}
    rest = {n for n, p in model.named_parameters() if isinstance(optimizers.of(p), torch.optim.AdamW)}
    assert rest == {n for n, _ in model.named_parameters()} - layers


def test_adamw_moves_everything_that_is_trained() -> None:
    layer = linear()
    optimizers = Optimizers(layer, pace=pace(optimizer="adamw"))
    assert all(isinstance(optimizers.of(p), torch.optim.AdamW) for p in layer.parameters())


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_run_with_muon_continues_to_the_same_bits(tmp_path: Path, killed_at) -> None:
    class Killed(Exception):
        pass

    def run(folder: Path, kill: int | None = None) -> torch.nn.Linear:
        layer = linear()

        def backward(step: int) -> float:
            if step == kill:
                raise Killed
            loss = layer(torch.randn(8, 6)).square().mean()  # random data from the generator that checkpoints keep
            loss.backward()
            return float(loss.detach())

        with torch.random.fork_rng():
            torch.manual_seed(7)
            train(layer, backward, pace=pace(), context=context(folder))
        return layer

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", kill=killed_at)
    again = run(tmp_path / "cut")
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.bias, whole.bias)
