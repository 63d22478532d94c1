"""The lab trains what it says, from a seed, and a killed training comes to the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.interfaces import StageContext
from harness.sources.lab.models import KINDS, Lab
from harness.testing import check_plugin
from tests.building import context

# 110 steps of one block: a checkpoint is written on the way, after 100 steps.
QUICK = {"tokens": 110 * 32, "batch": 1, "sequence": 32}


class Killed(Exception):
    """What a test raises in the middle of a training."""


def fetched(out: Path, model: Lab, *, given: StageContext | None = None) -> StageContext:
    given = given or context(out.with_name(f"{out.name}-scratch"))
    out.mkdir()
    model.fetch(out, context=given)
    return given


@pytest.mark.usefixtures("quick_lab")
def test_a_killed_training_goes_on_to_the_same_bits_as_one_that_was_not(tmp_path: Path) -> None:
    model = Lab("smoke-student", **QUICK)
    fetched(tmp_path / "whole", model)

    def killing(fraction: float | None, message: str) -> None:
        if message.startswith("step 105 of 110"):
            raise Killed

    given = context(tmp_path / "scratch")
    with pytest.raises(Killed):
        fetched(tmp_path / "killed", model, given=replace(given, progress=killing))
    seen: list[str] = []
    again = replace(given, progress=lambda fraction, message: seen.append(message))
    fetched(tmp_path / "again", model, given=again)
    steps = [message.partition(",")[0] for message in seen if message.startswith("step ")]
    assert steps[0] == "step 101 of 110"
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.usefixtures("quick_lab")
def test_a_model_learns_is_saved_with_its_tokenizer_and_says_what_it_read(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = fetched(
        tmp_path / "out", Lab("smoke-teacher", tokens=120 * 128, batch=2, sequence=64, kinds=["arithmetic"])
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.generation_config.eos_token_id
    assert (model.config.vocab_size, len(tokenizer), tokenizer.model_max_length) == (2048, 2048, 512)
    assert "packages" not in given.report.notes, "the made-up English has none"
    assert given.report.tokens == 120 * 128
    notes = given.report.notes
    assert notes["parameters"] == model.num_parameters()
    assert notes["steps"] == 120
    # ln 2048 = 7.6 before training; ten digits, three signs, `=` and a newline are never more than ln 15 = 2.7.
    assert 7 < notes["loss_first"] < 8.5
    assert notes["loss_last"] < 3.5
    assert 1 < notes["perplexity_heldout"] < 20


@pytest.mark.usefixtures("quick_lab")
def test_models_of_other_seeds_and_kinds_have_other_weights_and_the_same_tokenizer(tmp_path: Path) -> None:
    tiny = {"tokens": 64, "batch": 1, "sequence": 32}
    variants = {"a": Lab("smoke-student", **tiny), "b": Lab("smoke-student", seed=1, **tiny)}
    variants["c"] = Lab("smoke-student", kinds=["copy", "qa"], **tiny)
    for name, model in variants.items():
        fetched(tmp_path / name, model)
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in variants}
    tokenizers = {(tmp_path / name / "tokenizer.json").read_bytes() for name in variants}
    assert (len(weights), len(tokenizers)) == (3, 1)


@pytest.mark.usefixtures("quick_lab")
def test_the_saved_configuration_runs_no_code_and_names_an_ordinary_llama(tmp_path: Path) -> None:
    fetched(tmp_path / "out", Lab("smoke-student", tokens=64, batch=1, sequence=32))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert config["tie_word_embeddings"] is True


def test_an_unknown_size_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"'student-3b'; allowed: teacher, .*did you mean 'student-3m'\?"):
        Lab("student-3b")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"tokens": 2047}, "tokens 2047: at least batch \\* sequence, 2048"),
        ({"batch": 0}, "batch 0: from 1"),
        ({"sequence": 513}, "sequence 513: from 2 to 512"),
        ({"learning_rate": 0.0}, "learning_rate 0.0: more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan: more than 0"),
        ({"kinds": []}, "kinds \\[\\]: a list of some of english"),
        ({"kinds": "arithmetic"}, "kinds 'arithmetic': a list of some of english"),
        ({"kinds": ["arithmetics"]}, "did you mean 'arithmetic'"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Lab("teacher", **{"batch": 8, **arguments})


def test_a_plan_knows_the_format_and_what_the_text_depends_on_before_anything_is_trained() -> None:
    from harness.sources.docstrings import Docstrings

    assert Lab("teacher").format == "hf"
    assert Lab("teacher", kinds=["copy"]).fingerprint == Docstrings("default").fingerprint
    assert KINDS == ("english", "arithmetic", "copy", "lookup", "qa", "tools")


def test_the_lab_keeps_the_contract_of_sources() -> None:
    check_plugin("sources", Lab)
