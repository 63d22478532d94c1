"""The published report is what the code makes of the published records today, to the byte where bytes can agree."""

import shutil
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from harness import baselines, gating, reporting
from harness.gate.markdown import decision_markdown
from harness.record import Outcome
from harness.store import Store

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = sorted(path.name for path in (ROOT / "results" / "published").iterdir())
RECORDS = ROOT / "results" / "published" / "quickstart"
REPORTS = ROOT / "reports" / "published"
REPORT = REPORTS / "quickstart"
TEXT = {".md", ".csv", ".tex"}
AT_FULL_SIZE = {"gate/selftest.md"}
"""Made by `harness gate selftest --nights 20000 --records results/published/gate`; CI makes it at a smaller size."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every published report, made anew."""
    out = tmp_path_factory.mktemp("reports")
    for name in PUBLISHED:
        reporting.write(Store(ROOT / "results" / "published" / name), out / name, ())
    decided(out / "gate")
    return out


def decided(out: Path) -> None:
    """What `harness gate` says of the damaged models, held against their reference and its noise."""
    store = Store(ROOT / "results" / "published" / "gate")
    noise = store.root.with_name("gate-noise")
    pinned = gating.pin("reference", store.root, noise=noise, results=out / "pinned")
    known = baselines.load(pinned.name, results=out / "pinned")
    decision = gating.decide(store, known, gating.load_policy("release"), strict=False)
    told = decision.model_copy(update={"records": "results/published/gate"})
    (out / "decision.md").write_text(decision_markdown(told), encoding="utf-8", newline="\n")
    shutil.rmtree(out / "pinned")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_same_files_are_made(made) -> None:
    assert set(files(made)) == set(files(REPORTS)) - AT_FULL_SIZE


@pytest.mark.parametrize(
    "name", [name for name in files(REPORTS) if Path(name).suffix in TEXT and name not in AT_FULL_SIZE]
)
def test_text_is_the_same_to_the_byte(made, name) -> None:
    assert (made / name).read_text() == (REPORTS / name).read_text()


@pytest.mark.parametrize("name", [name for name in files(REPORTS) if Path(name).suffix == ".png"])
def test_figures_are_the_same_picture(made, name) -> None:
    # Another matplotlib or font renderer moves edges by a shade; a moved point or another number moves far more.
    assert compare_images(str(REPORTS / name), str(made / name), tol=2) is None


def test_the_readme_shows_the_published_table() -> None:
    """Every line of the README's tables stands in a published report."""
    readme = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    texts = [file.read_text() for file in REPORTS.rglob("*.md")]
    report = {line for text in texts for line in text.splitlines() if line.startswith("|")}
    assert readme
    assert set(readme) <= report


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_was_measured(name) -> None:
    records = Store(ROOT / "results" / "published" / name).records
    assert {record.outcome for record in records} <= {Outcome.OK, Outcome.EMULATED}


def test_the_quickstart_holds_what_the_readme_speaks_of() -> None:
    names = {record.cell.pipeline.name for record in Store(RECORDS).records}
    assert {"reference", "Q8_0", "Q4_K_M", "Q2_K", "rtn-int4"} <= names


def divergence(pipeline: str) -> float:
    record = next(
        r for r in Store(RECORDS).records if r.cell.pipeline.name == pipeline and r.cell.runtime.use == "llama_cpp"
    )
    return next(metric.value for metric in record.metrics if metric.name == "kl_mean")


def test_divergence_falls_as_bits_rise() -> None:
    assert divergence("Q2_K") > divergence("Q4_K_M") > divergence("Q8_0") > divergence("reference")
