"""The reload proof: files that give the model in memory pass, and every way of being wrong that was seen is caught."""

import json
import shutil
from collections.abc import Iterator

import pytest

from harness.errors import CorruptArtifact, ModelError, Unsupported
from harness.interfaces import Artifact
from harness.spec import Hardware
from harness.stages.quantize.gptq import QuantizeGptq
from harness.stages.quantize.proof.architecture import read_architecture
from harness.stages.quantize.proof.coverage import prove
from harness.stages.quantize.proof.packing import require_ends_kept, write_packed
from harness.stages.quantize.proof.reloading import Probe, difference, probe, probe_tokens, require_reload
from tests.building import context
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, load
from tests.stages.quantize.packed_world import pack, reading_here, reconfigure, reopened, rewrite, tensors

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory) -> Artifact:
    stage = QuantizeGptq(group=32, tokens=TOKENS, sequence=SEQUENCE)
    with reading_here():
        return pack(stage, loud, tmp_path_factory.mktemp("packed"), corpus=corpus)[0]


@pytest.fixture
def here() -> Iterator[None]:
    with reading_here():
        yield


@pytest.fixture(scope="module")
def seen(packed) -> Probe:
    return probe(reopened(packed.path))


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed.path, tmp_path / "copy")


def shift_scales(stored: dict) -> None:
    name = f"{MODULE}.weight_scale"
    stored[name] = stored[name].roll(1, dims=1)


def zero_head(stored: dict) -> None:
    stored["model.embed_tokens.weight"].zero_()


def lose(stored: dict) -> None:
    del stored[f"{MODULE}.weight_scale"]


def no_number(stored: dict) -> None:
    stored[f"{MODULE}.weight_scale"][0, 0] = float("nan")


def forget(config: dict) -> None:
    del config["quantization_config"]


def test_the_same_probe_is_read_by_every_model_of_a_vocabulary():
    assert torch.equal(probe_tokens(384), probe_tokens(384))
    assert int(probe_tokens(5).max()) == 4


def test_the_difference_is_the_share_of_the_spread_that_is_error():
    expected = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    # Root mean squares: 0.5 of the error, sqrt(2.5) of the logits around their mean of 0.
    assert difference(expected, expected + 0.5) == pytest.approx(0.5 / 2.5**0.5)
    assert difference(expected, expected) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, ""),
        (lose, "cannot be read back in a fresh process: .*weight_scale"),
        (shift_scales, "do not give the model that was in memory: its logits are off by"),
    ],
    ids=["intact", "a scale lost", "scales shifted"],
)
def test_a_fresh_process_passes_what_is_intact_and_says_what_is_wrong(change, said, copy, seen, tmp_path):
    if change is None:
        assert require_reload(copy, seen, context=context(tmp_path / "scratch")) <= 1e-6
        return
    rewrite(copy, change)
    with pytest.raises(ModelError, match=said):
        require_reload(copy, seen, context=context(tmp_path / "scratch"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "said"), [(zero_head, "same logit"), (no_number, "no numbers"), (shift_scales, "are off by")]
)
def test_files_that_load_and_are_wrong_are_caught(change, said, copy, seen, tmp_path):
    rewrite(copy, change)
    with pytest.raises(ModelError, match=said):
        require_reload(copy, seen, context=context(tmp_path / "scratch"))


@pytest.mark.usefixtures("here")
def test_a_folder_that_forgot_that_it_is_packed_does_not_load_with_random_weights(copy, seen, tmp_path):
    reconfigure(copy, forget)
    with pytest.raises((CorruptArtifact, Unsupported)):
        require_reload(copy, seen, context=context(tmp_path / "scratch"))


def test_an_embedding_that_changed_is_caught_whatever_memory_said(packed, loud, copy):
    architecture = read_architecture(loud.path)
    require_ends_kept(loud.path, packed.path, architecture, coverage=prove(packed.path, architecture))
    rewrite(copy, zero_head)
    with pytest.raises(ModelError, match=r"embed_tokens.weight was to stay as it is"):
        require_ends_kept(loud.path, copy, architecture, coverage=prove(copy, architecture))


@pytest.mark.usefixtures("here")
def test_a_quantizer_that_does_nothing_fails(loud, tmp_path):
    model, out = load(loud.path), tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match="nothing was quantized"):
        write_packed(model, out, lambda: model.save_pretrained(out), source=loud, context=context(tmp_path / "scratch"))


@pytest.mark.usefixtures("here")
def test_a_quantizer_that_writes_other_scales_than_it_computed_with_fails(loud, packed, tmp_path):
    out = tmp_path / "out"
    model = reopened(packed.path)

    def save() -> None:
        shutil.copytree(packed.path, out, dirs_exist_ok=True)
        rewrite(out, shift_scales)

    with pytest.raises(ModelError, match="are off by"):
        write_packed(model, out, save, source=loud, context=context(tmp_path / "scratch"))


def test_a_model_in_memory_that_answers_nothing_is_caught_before_it_is_written(loud):
    model = load(loud.path)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.raises(ModelError, match="in memory gives every token"):
        probe(model)


def test_a_runtime_that_unpacks_says_so_and_counts_what_it_computes_with(packed, loud):
    from harness.runtimes.transformers import Transformers

    with Transformers().open(packed, hardware=Hardware()) as session:
        unpacked = session.identity
    with Transformers().open(loud, hardware=Hardware()) as session:
        plain = session.identity
    assert (unpacked.unpacked, plain.unpacked) == (True, False)
    assert unpacked.parameters == plain.parameters
    assert unpacked.weights_memory_bytes >= plain.weights_memory_bytes
    assert unpacked.weights_disk_bytes < plain.weights_disk_bytes / 2


def test_the_packed_folder_keeps_the_tokenizer_and_holds_its_proof(packed, loud):
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (packed.path / name).read_bytes() == (loud.path / name).read_bytes()
    assert json.loads((packed.path / "coverage.json").read_text())["method"] == "compressed-tensors"
    assert "weight" in tensors(packed.path, "model.embed_tokens")
