"""Perplexity and first weights, where they can be told beforehand."""

import numpy as np
import pytest
import torch

from harness.sources.lab.pretraining import new_model, perplexity
from harness.sources.lab.sizes import SIZES
from harness.spec import Hardware


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    model = new_model(SIZES["smoke-student"], end_token=0, seed=0, hardware=Hardware())
    torch.nn.init.zeros_(
        model.get_output_embeddings().weight
    )  # all logits are 0, so every token has probability 1/2048
    blocks_NT = np.random.default_rng(0).integers(0, 2048, (3, 16))
    assert perplexity(model, blocks_NT) == pytest.approx(2048, rel=1e-5)


def test_first_weights_follow_from_the_seed_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    drawn = [new_model(SIZES["smoke-student"], end_token=0, seed=seed, hardware=Hardware()) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (model.get_input_embeddings().weight for model in drawn)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
