"""From files to a store and back, through the plug-ins' entry points."""

import json
from pathlib import Path

import pytest

from harness.errors import PluginNotFound, SourceError, SpecError, StoreError
from harness.exchanging import detect, export, import_into
from harness.store import Store
from tests.exchange.inspect_logs import archive, header, sample
from tests.exchange.llama_logs import Tokens, divergence, perplexity, saved

TOKENS = Tokens.drawn(8, 64)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return archive(tmp_path / "a.eval", header(), [sample("fr", 1, "C", "C"), sample(2, 1, "I", "C")])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "records")


def attempts(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.glob("*/attempt-*"))


def test_an_imported_log_is_read_back_as_any_attempt(log: Path, store: Store) -> None:
    (record,) = import_into("inspect", [log], store)
    assert store.records == [record]
    assert [row.values["score"] for row in store.observations(record)] == [1.0, 0.0]


def test_the_same_log_twice_is_one_attempt_and_a_changed_one_a_second(log: Path, store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        import_into("inspect", [log, log], store)
    assert attempts(store) == ["attempt-0001"]
    other = archive(tmp_path / "b.eval", header(), [sample("fr", 1, "I", "C"), sample(2, 1, "I", "C")])
    import_into("inspect", [other], store)
    import_into("inspect", [log], store)  # still there, though not the latest
    assert attempts(store) == ["attempt-0001", "attempt-0002"]


def test_an_answer_with_a_line_separator_stays_one_row(store: Store, tmp_path: Path) -> None:
    odd = sample("fr", 1, "C", "C", output={"completion": "one\u2028two\u0085three\n", "choices": []})
    (record,) = import_into(None, [archive(tmp_path / "a.eval", header(), [odd])], store)
    (row,) = store.observations(record)
    assert row.values["response"] == "one\u2028two\u0085three\n"


def test_one_wrong_file_stores_nothing(log: Path, store: Store, tmp_path: Path) -> None:
    broken = saved(tmp_path / "broken.eval", "no archive")
    with pytest.raises(SourceError):
        import_into("inspect", [log, broken], store)
    assert attempts(store) == []


def test_every_format_is_recognized_by_its_own_importer(log: Path, tmp_path: Path) -> None:
    assert detect(log) == "inspect"
    assert detect(saved(tmp_path / "a.json", json.dumps({**header(), "samples": []}))) == "inspect"
    assert detect(saved(tmp_path / "kl.log", divergence(TOKENS, 64))) == "llama_cpp"
    assert detect(saved(tmp_path / "ppl.txt", perplexity(TOKENS, 64))) == "llama_cpp"
    (tmp_path / "run" / "model").mkdir(parents=True)
    results = saved(tmp_path / "run" / "model" / "results_2026-01-02T03-04-05.json", "{}")
    assert detect(results) == detect(tmp_path / "run") == "lm_eval"


def test_a_file_that_nobody_knows_is_shown_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no importer knows") as error:
        detect(saved(tmp_path / "a.csv", "a,b\n1,2\n"))
    assert "a,b" in str(error.value)
    assert "allowed: inspect, llama_cpp, lm_eval" in str(error.value)
    with pytest.raises(SourceError, match="no such file"):
        detect(tmp_path / "nowhere")


def test_an_importer_takes_arguments_like_any_plug_in(store: Store, tmp_path: Path) -> None:
    file = saved(tmp_path / "kl.log", divergence(TOKENS, 64))
    (record,) = import_into("{use: llama_cpp, args: {text: wikitext-2, role: variant}}", [file], store)
    assert (record.cell.suite.name, record.cell.model.role) == ("llama-perplexity wikitext-2", "variant")
    with pytest.raises(SpecError, match="no such argument"):
        import_into("{use: llama_cpp, args: {texts: a}}", [file], store)
    with pytest.raises(SpecError, match="role is 'teacher'"):
        import_into("{use: llama_cpp, args: {role: teacher}}", [file], store)
    with pytest.raises(PluginNotFound, match="inspct"):
        import_into("inspct", [file], store)


def test_a_store_is_written_in_another_form(log: Path, store: Store, tmp_path: Path) -> None:
    import_into("inspect", [log], store)
    (file,) = export("bencher", store, tmp_path / "out")
    assert "score" in file.read_text()
    with pytest.raises(SourceError, match="no record here"):
        export("pytest-benchmark", store, tmp_path / "out")
    with pytest.raises(StoreError, match="no records"):
        export("bencher", Store(tmp_path / "empty"), tmp_path / "out")


def test_a_full_or_closed_place_is_said_without_a_traceback(log: Path, store: Store, tmp_path: Path) -> None:
    import_into("inspect", [log], store)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export("bencher", store, tmp_path / "file" / "below")
