"""Text that a model draws to calibrate itself."""

import pytest

from harness.stages.hf_folder import load_tokenizer
from harness.stages.quantize.calibration import draw_blocks
from tests.building import context
from tests.stages.prune.sparse_world import load

torch = pytest.importorskip("torch")


def drawn(loud, tmp_path, shape=(6, 24)):
    separator = load_tokenizer(loud).eos_token_id
    return draw_blocks(load(loud.path), shape, separator=separator, context=context(tmp_path)), separator


def test_blocks_have_the_shape_asked_for_and_tokens_of_the_vocabulary(loud, tmp_path):
    blocks, _ = drawn(loud, tmp_path)
    assert blocks.shape == (6, 24)
    assert blocks.min() >= 0
    assert blocks.max() < 384


def test_the_same_seed_draws_the_same_text_and_leaves_the_generator_alone(loud, tmp_path):
    before = torch.random.get_rng_state()
    (one, _), (two, _) = drawn(loud, tmp_path), drawn(loud, tmp_path)
    assert (one == two).all()
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_document_starts_with_the_separator_that_a_runtime_starts_texts_with(loud, tmp_path):
    blocks, separator = drawn(loud, tmp_path)
    # A document is as long as a block at most, so each block has at least one start in it.
    assert (blocks == separator).any(axis=1).all()
    assert blocks[0, 0] == separator
