"""The suite for quantizers: right ones pass, and every broken one is caught by the check that names its fault."""

import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness import plugins, testing
from harness.cli import cli
from harness.conformance import answers, launching, models, report, suite
from harness.conformance.bench import Bench, World, make_world
from harness.conformance.reading import read_all
from harness.conformance.verdicts import Report
from harness.errors import PluginNotFound, SpecError, UserError
from harness.spec import Use
from tests.conformance.broken import Fault, Lie

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
POINTS = """
[harness.stages]
broken = tests.conformance.broken:Broken
broken.packed = tests.conformance.broken:BrokenPacked
my_quantizer = my_package:MyQuantizer
"""
# The check that names the fault first, then those that it cannot but fail as well.
CAUGHT: dict[str, tuple[str, ...]] = {
    # What does nothing keeps every layer, also those it was not told to keep.
    "no-op": ("stores the bits it says", "honours ignore"),
    "wrong bits": ("stores the bits it says",),
    "scales off by one group": ("weighs like the source", "answers like the source", "keeps tied models tied"),
    # A tied head is the embedding: without it the model says nothing.
    "zeroed head": (
        "keeps embedding and head",
        "weighs like the source",
        "answers like the source",
        "keeps tied models tied",
    ),
    "zeroed layer": ("weighs like the source", "answers like the source"),
    "noisy layer": ("answers like the source", "weighs like the source", "keeps tied models tied"),
    "passes NaN on": ("refuses NaN and infinity",),
    "ignores ignore": ("honours ignore",),
    "no seed": ("repeats itself under a seed",),
    "quantizes the head": ("keeps embedding and head",),
    "changes the embedding": ("keeps embedding and head",),
    "breaks tying": ("keeps tied models tied",),
    "writes a pickle": ("writes no pickle",),
    "touches its source": ("keeps to its folders",),
    "writes beside": ("keeps to its folders",),
    "crashes on odd columns": ("copes with odd columns",),
    "refuses without a reason": ("copes with odd columns",),
    "loses the tokenizer": ("opens in a runtime",),
    "leaves threads and environment": ("leaves the process as it was",),
    "takes any group": ("refuses impossible arguments",),
}
PACKED_CAUGHT: dict[str, tuple[str, ...]] = {
    "says 4 stores 8": ("stores the bits it says",),
    "packs nothing": ("stores the bits it says",),
    "scales off by one group": ("weighs like the source", "answers like the source", "keeps tied models tied"),
    "zeroed layer": ("weighs like the source", "answers like the source"),
    # Packing a head that is the embedding takes the embedding away, and it fails on the missing tensor.
    "packs the head": ("keeps embedding and head", "keeps tied models tied"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The stages above, for this process and those it starts."""
    package = str(ROOT / "tests" / "third_party")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), package)))
        patch.syspath_prepend(package)
        with testing.installed(tmp_path_factory.mktemp("site"), POINTS):
            yield


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A bench that reads in this process; what a stage leaves behind is taken back."""
    threads = torch.get_num_threads()

    def make(name: str, **args: object) -> Bench:
        return Bench(Use(use=name, args=args), world, tmp_path, read_all, lambda fraction, message: None)

    yield make
    torch.set_num_threads(threads)
    os.environ.pop("QUANTIZER_SEEN", None)


def verdicts(bench: Bench) -> dict[str, str]:
    return {finding.check: f"{finding.verdict}: {finding.seen}" for finding in suite.run(bench)}


def failed(bench: Bench) -> set[str]:
    return {name for name, verdict in verdicts(bench).items() if verdict.startswith("FAILED")}


def test_every_fault_has_its_check_and_every_check_of_behaviour_its_fault() -> None:
    assert set(CAUGHT) | {"none"} == set(typing.get_args(Fault))
    assert set(PACKED_CAUGHT) | {"none"} == set(typing.get_args(Lie))
    named = {checks[0] for checks in CAUGHT.values()}
    # What is wrong with a class is told by other tests; two processes that differ need a loader that draws numbers.
    assert set(suite.CHECKS) - named == {
        "declares what the contract asks",
        "is cheap to build",
        "reads back the same",
    }


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_fault_is_caught_by_the_check_that_names_it(fault, bench) -> None:
    finding = suite.examine(bench("broken", fault=fault), CAUGHT[fault][0])
    assert finding.verdict == "FAILED"
    assert finding.seen


@pytest.mark.slow
def test_the_same_quantizer_without_a_fault_passes_everything(bench) -> None:
    assert {verdict.split(":")[0] for verdict in verdicts(bench("broken")).values()} == {"passed"}


@pytest.fixture(scope="module")
def of_the_example(world: World, tmp_path_factory: pytest.TempPathFactory, installed: None) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("example")
    return verdicts(Bench(Use(use="my_quantizer"), world, folder, read_all, lambda fraction, message: None))


def test_the_readme_shows_the_verdicts_that_its_example_gets(of_the_example) -> None:
    found = of_the_example
    (block,) = re.findall(r"```console\n\$ harness check-plugin my_quantizer\n(.*?)```", README, flags=re.DOTALL)
    for name, verdict in found.items():
        assert re.search(rf"^{name} +{verdict.split(':')[0]} ", block, flags=re.MULTILINE), name
    assert "17 passed" in block


def test_the_example_passes_everything(of_the_example) -> None:
    assert {verdict.split(":")[0] for verdict in of_the_example.values()} == {"passed"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", CAUGHT)
def test_a_fault_fails_nothing_but_what_it_must(fault, bench) -> None:
    assert failed(bench("broken", fault=fault)) == set(CAUGHT[fault])


@pytest.mark.slow
@pytest.mark.parametrize("lie", [*PACKED_CAUGHT, "none"])
def test_packed_folders_that_lie_are_caught(lie, bench) -> None:
    pytest.importorskip("compressed_tensors")
    found = failed(bench("broken.packed", lie=lie))
    if lie in ("says 4 stores 8", "packs nothing"):
        # transformers cannot read them, or what it reads is not what was stored.
        assert PACKED_CAUGHT[lie][0] in found
    else:
        assert found == set(PACKED_CAUGHT.get(lie, ()))


def test_rounding_to_nearest_passes(bench) -> None:
    assert failed(bench("quantize.rtn", bits=3, group=64)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("said", ["my_quantizer", "quantize.fp8", "quantize.gptq", "quantize.awq"])
def test_the_command_passes_a_right_quantizer_and_writes_what_it_found(said, tmp_path) -> None:
    if missing := plugins.missing_modules(plugins.load("stages", said)):
        pytest.skip(f"{said} needs {', '.join(missing)}")
    args = ", args: {tokens: 2048, sequence: 256}" if said in ("quantize.gptq", "quantize.awq") else ""
    file = tmp_path / "found.json"
    done = CliRunner().invoke(cli, ["check-plugin", f"{{use: {said}{args}}}", "--json", str(file)])
    assert done.exit_code == 0, done.output
    (found,) = [Report.model_validate(one) for one in json.loads(file.read_text())]
    assert [one.check for one in found.findings] == list(suite.CHECKS)
    assert not found.failed
    assert "passed" in done.output


@pytest.mark.slow
def test_the_command_exits_with_1_where_a_check_failed() -> None:
    done = CliRunner().invoke(cli, ["check-plugin", "{use: broken, args: {fault: touches its source}}"])
    assert done.exit_code == 1, done.output
    assert "it changed cache.json of its source" in done.output
    assert "16 passed, 1 FAILED" in done.output


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("quantize.rnt", PluginNotFound, "did you mean 'quantize.rtn'?"),
        ("{use: quantize.rtn, args: {bits: 5}}", SpecError, "bits is 5"),
        ("{use: quantize.rtn, args: {bit: 4}}", SpecError, "did you mean 'bits'?"),
        ("{use: quantize.rtn, args: {}}", SpecError, "needs an argument"),
        ("{use: prune.depth, args: {keep: 1}}", UserError, "says that it does not quantize"),
        ("{use: quantize.gguf, args: {type: Q4_0}}", UserError, "starts from gguf"),
        ("{use: quantize.rtn", SpecError, "not YAML"),
    ],
)
def test_what_cannot_be_checked_is_the_users_mistake(said, error, told) -> None:
    with pytest.raises(error, match=told.replace("?", r"\?")):
        CliRunner().invoke(cli, ["check-plugin", said], catch_exceptions=False)


def test_a_child_that_dies_or_hangs_is_told_apart(tmp_path) -> None:
    log, progress = tmp_path / "log.txt", lambda fraction, message: None
    died = launching.run_watched([sys.executable, "-c", "raise SystemExit(3)"], log, 30, progress)
    assert died.startswith("the process ended with exit code 3")
    hung = launching.run_watched([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.5, progress)
    assert hung.startswith("not finished after 0.5 s")
    assert launching.run_watched([sys.executable, "-c", ""], log, 30, progress) == ""


def test_factors_of_rows_and_columns_are_no_change_and_factors_of_groups_are() -> None:
    drawing = torch.Generator().manual_seed(0)
    weight_RC = torch.randn(64, 128, generator=drawing)
    moved_RC = weight_RC * torch.rand(1, 128, generator=drawing).add(0.1) * torch.rand(64, 1, generator=drawing).add(1)
    # Three turns of least squares bring the factors to a fraction of a per cent, and the band is 35 per cent wide.
    assert torch.allclose(answers.without_factors(weight_RC, moved_RC), moved_RC, rtol=5e-3)
    doubled_RC = weight_RC.clone()
    doubled_RC[:8, :32] *= 2  # 8 of 64 rows have one group of four that is twice as large
    fitted_RC = answers.without_factors(weight_RC, doubled_RC)
    ratios = doubled_RC[:8, :32].norm(dim=1) / fitted_RC[:8, :32].norm(dim=1)
    assert bool((ratios > 1.2).all())


def test_the_distance_of_states_is_a_share_of_their_spread() -> None:
    # Spread about the mean of (1, -1) and (-1, 1): four ones; two of four numbers are off by 1: sqrt(2 / 4).
    expected = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    found = expected + torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert answers.relative(expected, found) == pytest.approx(np.sqrt(0.5))


def test_the_models_are_what_their_docstring_says(world) -> None:
    from safetensors.torch import load_file

    tensors = {name: load_file(source.path / "model.safetensors") for name, source in world.sources.items()}
    down = "model.layers.1.mlp.down_proj.weight"
    assert {name: tuple(held[down].shape) for name, held in tensors.items()} == {
        "plain": (256, 512),
        "tied": (256, 512),
        "odd": (184, 328),
        "nan": (256, 512),
        "inf": (256, 512),
    }
    assert "lm_head.weight" not in tensors["tied"]
    assert tensors["tied"][down].dtype == torch.bfloat16
    unfinite = {
        name: sum(int((~tensor.isfinite()).sum()) for tensor in held.values()) for name, held in tensors.items()
    }
    assert unfinite == {"plain": 0, "tied": 0, "odd": 0, "nan": 1, "inf": 1}
    assert all(models.SHAPES["odd"].hidden % group for group in (16, 32, 64, 128))


def test_a_summary_counts_verdicts() -> None:
    findings = [{"check": name, "verdict": verdict, "seen": ""} for name, verdict in (("a", "passed"), ("b", "FAILED"))]
    one = Report.model_validate(
        {"stage": Use(use="x"), "version": "1", "environment": "this", "seconds": 3.2, "findings": findings}
    )
    assert list(report.summary(one)) == ["x version 1: 1 passed, 1 FAILED, in 3 s [this]"]
