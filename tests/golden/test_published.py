"""The published report is what the code makes of the published records today, to the byte where bytes can agree."""

from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from harness import reporting
from harness.record import Outcome
from harness.store import Store

ROOT = Path(__file__).parent.parent.parent
RECORDS = ROOT / "results" / "published" / "quickstart"
REPORT = ROOT / "reports" / "published" / "quickstart"
TEXT = {".md", ".csv", ".tex"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    reporting.write(Store(RECORDS), out, ())
    return out


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_same_files_are_made(made) -> None:
    assert files(made) == files(REPORT)


@pytest.mark.parametrize("name", [name for name in files(REPORT) if Path(name).suffix in TEXT])
def test_text_is_the_same_to_the_byte(made, name) -> None:
    assert (made / name).read_text() == (REPORT / name).read_text()


@pytest.mark.parametrize("name", [name for name in files(REPORT) if Path(name).suffix == ".png"])
def test_figures_are_the_same_picture(made, name) -> None:
    # Another matplotlib or font renderer moves edges by a shade; a moved point or another number moves far more.
    assert compare_images(str(REPORT / name), str(made / name), tol=2) is None


def test_the_readme_shows_the_published_table() -> None:
    """Every cell of the README's table stands in the report's own summary."""
    readme = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    report = {line for line in (REPORT / "report.md").read_text().splitlines() if line.startswith("|")}
    assert readme
    assert set(readme) <= report


def test_what_is_published_was_measured() -> None:
    records = Store(RECORDS).records
    assert {record.outcome for record in records} <= {Outcome.OK, Outcome.EMULATED}
    names = {record.cell.pipeline.name for record in records}
    assert {"reference", "Q8_0", "Q4_K_M", "Q2_K", "rtn-int4"} <= names


def divergence(pipeline: str) -> float:
    record = next(
        r for r in Store(RECORDS).records if r.cell.pipeline.name == pipeline and r.cell.runtime.use == "llama_cpp"
    )
    return next(metric.value for metric in record.metrics if metric.name == "kl_mean")


def test_divergence_falls_as_bits_rise() -> None:
    assert divergence("Q2_K") > divergence("Q4_K_M") > divergence("Q8_0") > divergence("reference")
