"""The hub, through its real client and a cache laid out by hand: no network."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from harness.errors import SourceError
from harness.interfaces import BuildReport
from harness.sources.hub import Hub
from tests.building import context

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline client whose cache holds org/name at one commit, main pointing there; gives the snapshot's folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "packed").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "own.py", "packed/q.gguf"):
        (snapshot / name).write_text(name)
    return snapshot


def fetched(source: Hub, tmp_path: Path) -> tuple[set[str], BuildReport]:
    out = tmp_path / "out"
    out.mkdir()
    used = context(tmp_path / "scratch")
    source.fetch(out, context=used)
    return {file.name for file in out.iterdir()}, used.report


def test_a_commit_gives_the_models_files_and_no_label(cached: Path, tmp_path: Path) -> None:
    files, report = fetched(Hub("org/name", revision=COMMIT), tmp_path)
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}
    assert report.notes["revision"] == COMMIT
    assert report.labels == []


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_branch_is_resolved_recorded_and_labelled(revision: str | None, cached: Path, tmp_path: Path) -> None:
    _, report = fetched(Hub("org/name", revision=revision), tmp_path)
    assert report.notes["revision"] == COMMIT
    (label,) = report.labels
    assert label.startswith("unpinned")
    assert COMMIT in label


def test_one_gguf_file_of_a_repository_can_be_named(cached: Path, tmp_path: Path) -> None:
    source = Hub("org/name", revision=COMMIT, gguf_file="packed/q.gguf")
    assert source.format == "gguf"
    assert fetched(source, tmp_path)[0] == {"q.gguf"}


@pytest.mark.parametrize("missing", [Hub("org/other"), Hub("org/name", revision="f" * 40)])
def test_what_is_not_in_the_cache_while_offline_is_an_error_with_a_remedy(
    missing: Hub, cached: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=f"hub:{missing.reference}") as raised:
        fetched(missing, tmp_path)
    assert "HF_HUB_OFFLINE" in str(raised.value.remedy)


def test_a_repository_with_pickles_alone_is_refused(cached: Path, tmp_path: Path) -> None:
    (cached / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="pickled weights") as raised:
        fetched(Hub("org/name", revision=COMMIT), tmp_path)
    assert "hub:org/name is not a model" in str(raised.value)


@pytest.mark.parametrize(
    "args", [{"reference": "a/b/c"}, {"reference": "../x"}, {"reference": "a/b", "gguf_file": "x"}]
)
def test_wrong_arguments_are_refused(args: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"org/name|one \*\.gguf"):
        Hub(**args)  # type: ignore[arg-type]
