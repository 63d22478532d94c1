"""The gate from the command line: every rule of the exit-code table, what it writes, and baselines that are pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from harness import baselines, gating
from harness.cli import cli
from harness.errors import SpecError, StoreError
from harness.gate.measured import Measured
from harness.gate.verdict import Decision
from harness.record import Failure, Outcome
from harness.spec import Suite, Use
from harness.store import RUNNING_ROWS, Store
from tests.gate.worlds import scores, side, sided
from tests.reporters.world import answers

PUBLISHED = Path(__file__).parent.parent / "results" / "published" / "quickstart"
POLICY = "name: test\nsuites: [{suite: quickstart, kind: accuracy, scale: retention, margin: 0.01}]\n"
FINE, LOST, OPEN = (7000, 301, 301, 4430), (700, 10, 190, 100), (600, 10, 20, 370)


def stored(folder: Path, sides: Sequence[Measured]) -> Path:
    """Writes sides as a run would have."""
    store = Store(folder)
    for one in sides:
        for record, rows in zip(one.records, one.rows, strict=True):
            with store.attempt(record.cell) as attempt:
                (attempt / RUNNING_ROWS).write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
                store.put(record, attempt)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def world(here: Path, *counted: tuple[int, int, int, int]) -> None:
    """A pinned baseline and tonight's records, a cell for each count of outcomes."""
    pairs = [scores(counts) for counts in counted]
    tonight = [side({"t": own}, pipeline=f"q{index}") for index, (own, _) in enumerate(pairs)]
    before = [side({"t": other}, pipeline=f"q{index}") for index, (_, other) in enumerate(pairs)]
    stored(here / "results" / "tonight", tonight)
    stored(here / "results" / "before", before)
    assert invoke("baseline", "set", "main", "results/before").exit_code == 0


def gate(*args: str) -> Result:
    return invoke("gate", "--policy", "policy.yaml", "--baseline", "main", "--records", "results/tonight", *args)


def decision(here: Path) -> Decision:
    return Decision.model_validate_json((here / "reports" / "gate" / "decision.json").read_text())


def test_0_when_nothing_was_lost(here: Path) -> None:
    world(here, FINE)
    result = gate()
    assert result.exit_code == 0, result.output
    assert "NON_INFERIOR" in result.output
    assert {file.name for file in (here / "reports" / "gate").iterdir()} == {
        "decision.json",
        "decision.md",
        "junit.xml",
        "summary.md",
    }


def test_1_when_a_loss_above_the_margin_is_proven(here: Path) -> None:
    world(here, FINE, LOST)
    assert gate().exit_code == 1
    found = decision(here)
    assert found.exit_code == 1
    lost = next(one for one in found.findings if one.place.label.split(" / ")[1] == "q1" and one.place.task == "t")
    assert (lost.counts.won, lost.counts.lost, lost.counts.n) == (10, 190, 1000)
    assert ElementTree.parse(here / "reports" / "gate" / "junit.xml").getroot().get("failures") != "0"


def test_2_for_a_mistake_in_the_command_the_policy_or_the_baseline(here: Path) -> None:
    world(here, FINE)
    assert isinstance(invoke("gate", "--policy", "policy.yaml").exception, SystemExit)
    assert invoke("gate", "--policy", "policy.yaml").exit_code == 2
    for args, told in (
        (("gate", "--policy", "none", "--baseline", "main"), "there is no policy of that name"),
        (("gate", "--policy", "policy.yaml", "--baseline", "mian"), "did you mean 'main'?"),
    ):
        result = invoke(*args)
        assert isinstance(result.exception, (SpecError, StoreError))  # what `main` turns into exit code 2
        assert told in str(result.exception)
    (here / "policy.yaml").write_text(POLICY.replace("margin: 0.01", "margn: 0.01"))
    assert "policy.yaml:2" in str(gate().exception)


def test_3_when_it_is_open_and_asked_to_be_strict_and_0_with_a_warning_otherwise(here: Path) -> None:
    world(here, FINE, OPEN)
    strict, plain = gate("--strict"), gate()
    assert (strict.exit_code, plain.exit_code) == (3, 0)
    assert "INCONCLUSIVE" in plain.output
    assert "more items" in plain.output.lower()


def test_4_when_a_cell_has_no_numbers(here: Path) -> None:
    world(here, FINE)
    broken = {"outcome": Outcome.OUT_OF_MEMORY, "error": Failure(phase="observe", reason="no memory left")}
    stored(here / "results" / "before2", [side({"t": [1.0] * 50}, pipeline="q0")])
    invoke("baseline", "set", "main", "results/before2")
    stored(here / "results" / "tonight2", [side({}, pipeline="q0", changes=broken)])
    result = invoke("gate", "--policy", "policy.yaml", "--baseline", "main", "--records", "results/tonight2")
    assert result.exit_code == 4
    assert "no memory left" in result.output


def test_4_when_the_two_sides_were_asked_other_things(here: Path) -> None:
    for name, prompt in (("before", "old"), ("tonight", "new")):
        stored(here / "results" / name, [sided(answers("t", [1.0] * 400, prompt_hash=prompt), pipeline="q0")])
    invoke("baseline", "set", "main", "results/before")
    result = gate()
    assert result.exit_code == 4
    assert "prompt_hash" in result.output


def broken_cell(name: str) -> Measured:
    return side({}, pipeline=name, changes={"outcome": Outcome.FAILED, "error": Failure(phase="open", reason="bad")})


@pytest.mark.parametrize(
    ("worlds", "code"),
    [((FINE, LOST, None), 1), ((FINE, OPEN, None), 4), ((OPEN, LOST), 1), ((FINE, OPEN), 3), ((FINE,), 0)],
)
def test_of_several_a_regression_comes_first_then_what_is_missing_then_what_is_open(here: Path, worlds, code) -> None:
    tonight, before = [], []
    for index, counts in enumerate(worlds):
        own, other = scores(counts or FINE)
        name = f"q{index}"
        tonight.append(side({"t": own}, pipeline=name) if counts else broken_cell(name))
        before.append(side({"t": other}, pipeline=name))
    stored(here / "results" / "tonight", tonight)
    stored(here / "results" / "before", before)
    invoke("baseline", "set", "main", "results/before")
    assert gate("--strict").exit_code == code


def test_github_gets_annotations_and_a_summary(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world(here, LOST)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    result = gate()
    assert "\n::error " in result.output
    assert "REGRESSED" in (here / "summary.md").read_text()


def test_a_baseline_stays_what_it_was_until_it_is_set_again(here: Path) -> None:
    world(here, FINE)
    first = baselines.load("main", results=here / "results").pin
    gate()
    assert baselines.load("main", results=here / "results").pin == first
    stored(here / "results" / "later", [side({"t": [1.0] * 20}, pipeline="q0")])
    invoke("baseline", "set", "main", "results/later")
    shown = invoke("baseline", "show", "main").output
    assert f"before: {first.digest}" in shown
    assert shown.startswith(f"main  {baselines.load('main', results=here / 'results').pin.digest}")


def test_a_baseline_that_somebody_edited_is_refused(here: Path) -> None:
    world(here, FINE)
    folder = here / "results" / "baselines" / "main"
    record = next(folder.glob("*/records/*/attempt-0001/record.json"))
    plain = json.loads(record.read_text())
    record.write_text(json.dumps(plain))
    result = gate()
    assert isinstance(result.exception, StoreError)
    assert "not what was pinned" in str(result.exception)
    assert "record.json" in str(result.exception)


def test_a_policy_that_judges_nothing_is_a_mistake_and_no_pass(here: Path) -> None:
    world(here, FINE)
    (here / "policy.yaml").write_text(POLICY.replace("quickstart", "elsewhere"))
    assert "judges none of these cells" in str(gate().exception)


def test_real_records_are_compared_and_the_changed_items_shown(here: Path) -> None:
    a, b = f"{PUBLISHED}:pipeline=reference,runtime=llama_cpp", f"{PUBLISHED}:pipeline=Q2_K"
    result = invoke("compare", a, b, "--out", "out")
    assert result.exit_code == 0, result.output
    (plain,) = json.loads((here / "out" / "compare.json").read_text())
    pooled = next(one for one in plain["findings"] if one["place"]["task"] == "all tasks together")
    # The published table says 0.92 [0.85, 0.99] of 488 items.
    assert pooled["retention"]["value"] == pytest.approx(0.918, abs=0.001)
    assert pooled["counts"]["n"] == 488
    assert len(plain["changed"]) == 10
    assert all(one["baseline"] != one["candidate"] for one in plain["changed"])
    assert "lost offline_geography" in result.output


def test_what_two_sides_mean_is_picked_by_name_by_folder_or_by_attempt(here: Path) -> None:
    (cell,) = [folder for folder in PUBLISHED.iterdir() if "--Q8_0--" in folder.name]
    reference = f"{PUBLISHED}:pipeline=reference,runtime=llama_cpp"
    policy = gating.load_policy("compare")
    for said in (
        f"{PUBLISHED}:pipeline=Q8_0",
        str(cell),
        str(cell / "attempt-0001"),
        str(cell / "attempt-0001" / "record.json"),
    ):
        (found,) = gating.compare(reference, said, policy=policy)
        assert "Q8_0" in found.candidate.label
    with pytest.raises(SpecError, match="no cell fits"):
        gating.compare(reference, f"{PUBLISHED}:pipeline=Q9", policy=policy)
    with pytest.raises(SpecError, match="picked out"):
        gating.compare(reference, f"{PUBLISHED}:pipline=Q8_0", policy=policy)
    with pytest.raises(StoreError, match="no such folder"):
        gating.compare(reference, str(PUBLISHED / "nothing"), policy=policy)


def test_a_lossless_night_passes_on_real_records_and_a_crippled_model_does_not(here: Path) -> None:
    invoke("baseline", "set", "main", str(PUBLISHED))
    same = invoke("gate", "--baseline", "main", "--policy", "nightly", "--records", str(PUBLISHED))
    assert same.exit_code == 0, same.output
    worse = invoke("gate", "--baseline", "main", "--policy", "release", "--records", str(PUBLISHED))
    assert worse.exit_code == 1
    regressed = {one.place.label.split(" / ")[1] for one in decision(here).suites if one.verdict == "REGRESSED"}
    assert {"prune22-distill", "prune22-distill-Q4_K_M"} <= regressed
    assert not {"Q8_0", "Q4_K_M"} & regressed


def test_a_suite_of_another_version_of_an_evaluation_is_not_compared(here: Path) -> None:
    own = side({"t": [1.0] * 300}, pipeline="q0", changes={"versions": {"tasks.lm_eval": "1"}})
    new = side({"t": [1.0] * 300}, pipeline="q0", changes={"versions": {"tasks.lm_eval": "2"}})
    stored(here / "results" / "before", [own])
    stored(here / "results" / "tonight", [new])
    invoke("baseline", "set", "main", "results/before")
    result = gate()
    assert result.exit_code == 4
    assert "versions.tasks.lm_eval" in result.output
    (here / "policy.yaml").write_text(POLICY + "allow_different: [versions.*]\n")
    assert gate().exit_code == 0


def test_another_suite_under_the_same_name_is_not_compared(here: Path) -> None:
    longer = Suite(name="quickstart", version="1", evaluations=(Use(use="tasks.lm_eval", args={"limit": 5}),))
    stored(here / "results" / "before", [side({"t": [1.0] * 300}, pipeline="q0")])
    stored(here / "results" / "tonight", [side({"t": [1.0] * 300}, pipeline="q0", suite=longer)])
    invoke("baseline", "set", "main", "results/before")
    result = gate()
    assert result.exit_code == 4
    assert "suite.evaluations" in result.output


def test_records_that_are_the_baselines_own_are_named_as_such(here: Path) -> None:
    world(here, FINE)
    invoke("baseline", "set", "main", "results/tonight")
    assert "1 of 1 cells were not measured again" in gate().output


def test_two_runtimes_of_a_reference_are_no_noise_floor(here: Path) -> None:
    told = invoke("baseline", "set", "main", str(PUBLISHED), "--noise", str(PUBLISHED)).exception
    assert isinstance(told, StoreError)
    assert "no reference was measured twice" in str(told)


def test_suites_of_a_decision_are_ordered_worst_first(here: Path) -> None:
    world(here, FINE, LOST, OPEN)
    gate()
    assert [one.verdict for one in decision(here).suites] == ["REGRESSED", "INCONCLUSIVE", "NON_INFERIOR"]


def test_a_field_that_no_comparison_looks_at_cannot_be_allowed_to_differ(here: Path) -> None:
    world(here, FINE)
    (here / "policy.yaml").write_text(POLICY + "allow_different: [kernell]\n")
    told = gate().exception
    assert isinstance(told, SpecError)
    assert "did you mean 'kernel'?" in str(told)
    (here / "policy.yaml").write_text(POLICY + "allow_different: [machine.kernel, 'libraries.*', cell.runtime]\n")
    assert gate().exit_code == 0


def test_options_of_the_gate_before_its_selftest_are_refused_and_not_ignored(here: Path) -> None:
    result = invoke("gate", "--policy", "release", "selftest", "--nights", "1")
    assert result.exit_code == 2
    assert "behind it" in result.output


def test_a_disk_that_refuses_a_baseline_or_a_summary_is_a_mistake_with_a_remedy(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world(here, FINE)
    (here / "file").write_text("")
    told = invoke("baseline", "set", "main", "results/before", "--results", "file/results").exception
    assert isinstance(told, StoreError)
    assert "--results" in str(told)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "nowhere" / "summary.md"))
    assert "summary cannot be written" in str(gate().exception)


def test_compare_shows_cells_without_numbers_and_names_those_that_are_not_there(here: Path) -> None:
    own, other = scores(FINE)
    stored(here / "a", [side({"t": other}, pipeline=f"q{index}") for index in range(3)])
    stored(here / "b", [side({"t": own}, pipeline="q0"), broken_cell("q1")])
    result = invoke("compare", "a", "b", "--out", "out")
    assert result.exit_code == 0, result.output
    verdicts = [one["verdict"] for one in json.loads((here / "out" / "compare.json").read_text())]
    assert verdicts == ["NON_INFERIOR", "MISSING"]
    assert "only in a: " in result.output
    assert "q2" in result.output


def test_an_error_of_ours_and_a_closed_pipe_do_not_say_regressed(here: Path) -> None:
    crash = "import harness.cli as c, click; c.cli.add_command(click.Command('x', callback=lambda: 1 / 0)); c.main()"
    done = subprocess.run([sys.executable, "-c", crash, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    world(here, LOST)
    command = [sys.executable, "-m", "harness.cli", "gate", "--policy", "policy.yaml", "--baseline", "main"]
    child = subprocess.Popen(
        [*command, "--records", "results/tonight"], cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait() not in (0, 1)
