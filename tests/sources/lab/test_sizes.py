"""The catalogue's shapes are what they are said to be."""

import pytest

from harness.sources.lab.pretraining import new_model
from harness.sources.lab.sizes import SIZES
from harness.spec import Hardware

# Embeddings 2048 h (the output matrix is the same one), a last norm h; a layer has queries and output h*h each, keys
# and values h*64k each for k key heads, three MLP matrices h*i, and two norms of h.
PARAMETERS = {
    # 2048*512 + 512 + 5 * (2*512*512 + 2*512*128 + 3*512*1024 + 2*512)
    "teacher": 1_048_576 + 512 + 5 * (524_288 + 131_072 + 1_572_864 + 1_024),
    # 2048*256 + 256 + 4 * (2*256*256 + 2*256*128 + 3*256*512 + 2*256)
    "student-3m": 524_288 + 256 + 4 * (131_072 + 65_536 + 393_216 + 512),
    # 2048*256 + 256 + 2 * (2*256*256 + 2*256*128 + 3*256*256 + 2*256)
    "student-1m": 524_288 + 256 + 2 * (131_072 + 65_536 + 196_608 + 512),
    "smoke-teacher": 524_288 + 256 + 3 * (131_072 + 65_536 + 196_608 + 512),
    "smoke-student": 524_288 + 256 + 1 * (131_072 + 65_536 + 196_608 + 512),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_the_parameters_that_its_shape_adds_up_to(name: str) -> None:
    model = new_model(SIZES[name], end_token=0, seed=0, hardware=Hardware())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_the_names_of_the_sizes_say_how_large_they_are() -> None:
    assert 12e6 <= PARAMETERS["teacher"] <= 15e6
    assert round(PARAMETERS["student-3m"] / 1e6) == 3
    assert round(PARAMETERS["student-1m"] / 1e6) == 1


@pytest.mark.parametrize("name", SIZES)
def test_every_row_of_every_matrix_fits_the_blocks_of_k_quants(name: str) -> None:
    model = new_model(SIZES[name], end_token=0, seed=0, hardware=Hardware())
    assert all(parameter.shape[1] % 256 == 0 for parameter in model.parameters() if parameter.ndim == 2)
