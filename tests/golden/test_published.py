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
LARGE = "quantizers"
"""A report that takes a minute to make."""
AT_FULL_SIZE = {"gate/selftest.md"}
"""Made by `harness gate selftest --nights 20000 --records results/published/gate`; CI makes it at a smaller size."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every published report but the large one, made anew."""
    out = tmp_path_factory.mktemp("reports")
    for name in set(PUBLISHED) - {LARGE}:
        reporting.write(Store(ROOT / "results" / "published" / name), out / name, ())
    decided(out / "gate")
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large one, made anew."""
    out = tmp_path_factory.mktemp("large")
    reporting.write(Store(ROOT / "results" / "published" / LARGE), out / LARGE, ())
    return out


@pytest.fixture
def made(name: str, request: pytest.FixtureRequest) -> Path:
    """The folder in which a report was made anew."""
    return request.getfixturevalue("large" if name.startswith(LARGE) else "small")


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


def parts(kinds: set[str]) -> list[object]:
    """The published files of some kinds; those of the large report are compared by the slow tests."""
    names = [name for name in files(REPORTS) if Path(name).suffix in kinds and name not in AT_FULL_SIZE]
    return [pytest.param(name, marks=[pytest.mark.slow] if name.startswith(LARGE) else []) for name in names]


def test_the_same_files_are_made(small) -> None:
    assert set(files(small)) == {name for name in files(REPORTS) if not name.startswith(LARGE)} - AT_FULL_SIZE


@pytest.mark.slow
def test_the_same_files_are_made_of_the_large_one(large) -> None:
    assert set(files(large)) == {name for name in files(REPORTS) if name.startswith(LARGE)}


@pytest.mark.parametrize("name", parts(TEXT))
def test_text_is_the_same_to_the_byte(made, name) -> None:
    assert (made / name).read_text() == (REPORTS / name).read_text()


@pytest.mark.parametrize("name", parts({".png"}))
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
    outcomes = {record.outcome for record in records}
    # Some quantizers cannot run without a GPU, which is a row of that table.
    assert outcomes <= {Outcome.OK, Outcome.EMULATED} | ({Outcome.UNSUPPORTED} if name == "quantizers" else set())


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
