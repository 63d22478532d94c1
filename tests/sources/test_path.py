"""Local models: what is taken, what is refused, and when the fingerprint changes."""

import os
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.sources import model_files
from harness.sources.path import LocalPath
from tests.building import context


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"):
        (folder / name).write_text(name)
    for name in ("modeling_own.py", "pytorch_model.bin", "notes.md", "training_args.pt"):
        (folder / name).write_text("never taken")
    (folder / "checkpoint-10").mkdir()
    return folder


def fetched(reference: Path, tmp_path: Path) -> set[str]:
    out = tmp_path / "out"
    out.mkdir()
    LocalPath(str(reference)).fetch(out, context=context(tmp_path / "scratch"))
    return {file.name for file in out.iterdir()}


def test_a_model_folder_is_taken_without_code_and_pickles(model: Path, tmp_path: Path) -> None:
    assert LocalPath(str(model)).format == "hf"
    expected = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"}
    assert fetched(model, tmp_path) == expected
    assert (tmp_path / "out" / "model.safetensors").samefile(model / "model.safetensors")


def test_files_are_copied_where_links_cannot_be(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(model_files.os, "link", refuse)
    fetched(model, tmp_path)
    copy = tmp_path / "out" / "model.safetensors"
    assert copy.read_text() == "model.safetensors"
    assert not copy.samefile(model / "model.safetensors")


@pytest.mark.parametrize("reference", ["some/model.gguf", "some"])
def test_a_gguf_is_taken_by_its_file_or_its_folder(reference: str, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "some" / "README.md").write_text("")
    assert LocalPath(str(tmp_path / reference)).format == "gguf"
    assert fetched(tmp_path / reference, tmp_path) == {"model.gguf"}


def test_a_folder_with_both_splits_is_a_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("train.txt", "heldout.txt", "other.txt"):
        (folder / name).write_text("text")
    assert LocalPath(str(folder)).format == "text"
    assert fetched(folder, tmp_path) == {"train.txt", "heldout.txt"}


def test_a_folder_with_pickles_alone_is_refused_with_a_remedy(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="pickles, which can run code") as raised:
        _ = LocalPath(str(model)).format
    assert "pytorch_model.bin" in str(raised.value)
    assert "safe_serialization=True" in str(raised.value)


def test_several_gguf_files_must_be_chosen_from(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="several GGUF files"):
        _ = LocalPath(str(tmp_path)).format


def test_what_is_missing_or_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        _ = LocalPath(str(tmp_path / "missing")).fingerprint
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(SourceError, match="is not a model"):
        _ = LocalPath(str(tmp_path)).format
    with pytest.raises(ValueError, match="path is empty"):
        LocalPath("")


def test_the_fingerprint_changes_with_content_time_and_names_and_with_nothing_else(model: Path) -> None:
    source = LocalPath(str(model))
    first = source.fingerprint
    assert LocalPath(str(model)).fingerprint == first
    weights = model / "model.safetensors"
    weights.write_text("other weights!")
    second = source.fingerprint
    os.utime(weights, ns=(0, 12345))
    third = source.fingerprint
    weights.rename(model / "renamed.safetensors")
    assert len({first, second, third, source.fingerprint}) == 4
