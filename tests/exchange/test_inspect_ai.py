"""Importing Inspect's logs; the form of the logs was taken from ones that Inspect 0.3.285 wrote."""

import json
import math
import zipfile
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.exchange import _inspect_archive, _inspect_rows
from harness.exchange.imported import Imported
from harness.exchange.inspect_ai import InspectLog
from harness.statistics.items import pair, scored
from tests.exchange.inspect_logs import archive, header, sample, zstandard_archive

SAMPLES = [sample("fr", 1, "C", "C"), sample(2, 1, "I", "I"), sample("fr", 2, "I", "C"), sample(2, 2, "N", "P")]


def imported(file: Path, **arguments: str) -> Imported:
    (found,) = InspectLog(**arguments).read(file)
    return found


def test_a_sample_has_the_mean_of_its_epochs_and_says_so(tmp_path: Path) -> None:
    found = imported(archive(tmp_path / "a.eval", header(), SAMPLES))
    rows = {row.sample: row.values for row in found.rows}
    # match: C and I are 1 and 0, I and N both 0; includes: C and C are 1, I and P are 0 and 0.5.
    assert (rows["fr"]["score"], rows["fr"]["includes"]) == (0.5, 1.0)
    assert (rows["2"]["score"], rows["2"]["includes"]) == (0.0, 0.25)
    score = next(one for one in found.record.metrics if one.name == "score")
    assert (score.value, score.n) == (0.25, 2)
    assert score.caveats == ("an item is the mean of 2 epochs",)


def test_the_archive_and_the_json_file_of_one_log_give_the_same(tmp_path: Path) -> None:
    one = imported(archive(tmp_path / "a.eval", header(), SAMPLES))
    (tmp_path / "a.json").write_text(json.dumps({**header(), "samples": SAMPLES}))
    other = imported(tmp_path / "a.json")
    assert one.rows == other.rows
    assert one.record.cell == other.record.cell
    assert one.record.metrics == other.record.metrics


def test_an_archive_packed_with_zstandard_is_read(tmp_path: Path) -> None:
    members = {f"samples/{n}.json": json.dumps(one).encode() for n, one in enumerate(SAMPLES)}
    file = zstandard_archive(tmp_path / "a.eval", {**members, "header.json": json.dumps(header()).encode()})
    assert imported(file).rows == imported(archive(tmp_path / "b.eval", header(), SAMPLES)).rows


def test_a_wrong_checksum_inside_zstandard_is_damage(tmp_path: Path) -> None:
    file = zstandard_archive(tmp_path / "a.eval", {"header.json": json.dumps(header()).encode()}, damage=True)
    with pytest.raises(SourceError, match="checksum") as error:
        imported(file)
    assert "a.eval:header.json" in str(error.value)


def test_without_pyarrow_zstandard_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zstandard_archive(tmp_path / "a.eval", {"header.json": b"{}"})
    monkeypatch.setattr(_inspect_archive.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="Zstandard") as error:
        imported(file)
    assert "inspect log convert" in str(error.value)


def test_a_packing_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read here") as error:
        imported(archive(tmp_path / "a.eval", header(), SAMPLES, method=zipfile.ZIP_LZMA))
    assert "zip method 14" in str(error.value)


@pytest.mark.parametrize("packed", ["deflate", "zstandard"])
def test_a_member_that_unpacks_to_more_than_it_says_stops_at_the_limit(packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_inspect_archive, "MAX_MEMBER_BYTES", 1000)
    bomb = b'"' + b"0" * 10**6 + b'"'
    file = tmp_path / "a.eval"
    if packed == "zstandard":
        zstandard_archive(file, {"header.json": bomb})
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("header.json", bomb)
    # The size in the directory is a stranger's claim: here it says 10 bytes.
    file.write_bytes(file.read_bytes().replace((10**6 + 2).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(SourceError, match=r"larger than it can be|damaged"):
        imported(file)


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = archive(tmp_path / "in" / "a.eval", header(), SAMPLES)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("samples/../../../gone.json", json.dumps(sample(3, 1, "C", "C")))
    assert len(imported(file).rows) == 3
    assert [one.name for one in tmp_path.rglob("*")] == ["in", "a.eval"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *(("C", 1.0), ("I", 0.0), ("P", 0.5), ("N", 0.0)),
        *(("yes", 1.0), ("True", 1.0), ("no", 0.0), ("0.75", 0.75)),
        *((True, 1.0), (3, 3.0), (0.25, 0.25)),
        *(("perhaps", None), (math.nan, None), ("inf", None), ([1, 2], None), (None, None)),
    ],
)
def test_a_scorers_value_is_the_number_that_inspect_makes_of_it(value, number) -> None:
    assert _inspect_rows.number(value) == number


def test_a_sample_that_failed_or_could_not_be_judged_is_kept_without_a_score(tmp_path: Path) -> None:
    failed = sample("fr", 1, error={"message": "out of time", "traceback": "..."}, output={"choices": []}, scores={})
    unjudged = sample(2, 1, math.nan, "C")
    found = imported(archive(tmp_path / "a.eval", header(), [failed, unjudged, sample(3, 1, "C", "C")]))
    rows = {row.sample: row.values for row in found.rows}
    assert "score" not in rows["fr"]
    assert rows["fr"]["error"] == "out of time"
    assert "score" not in rows["2"]
    assert rows["2"]["includes"] == 1.0
    score = next(one for one in found.record.metrics if one.name == "score")
    assert (score.value, score.n) == (1.0, 1)
    assert score.caveats == ("2 of 3 samples have no score and are left out of the mean",)


def test_a_cut_answer_and_a_missing_one_are_told_apart_from_wrong_ones(tmp_path: Path) -> None:
    given = [sample("a", 1, "I", "I", stop="max_tokens"), sample("b", 1, "N", "I"), sample("c", 1, "I", "I")]
    rows = imported(archive(tmp_path / "a.eval", header(), given)).rows
    assert [(row.values["truncated"], row.values["unparsed"]) for row in rows] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_another_scorer_can_be_asked_for_and_an_unknown_one_lists_those_there_are(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.eval", header(), SAMPLES)
    assert [row.values["score"] for row in imported(file, scorer="includes").rows] == [1.0, 0.25]
    with pytest.raises(SourceError, match="no such scorer") as error:
        imported(file, scorer="includse")
    assert "allowed: includes, match" in str(error.value)


def test_a_scorer_of_several_values_keeps_each_under_its_key(tmp_path: Path) -> None:
    given = sample("a", 1, {"tone": "C", "length": 0.2}, "C")
    (row,) = imported(archive(tmp_path / "a.eval", header(), [given]), scorer="includes").rows
    assert (row.values["match.tone"], row.values["match.length"], row.values["score"]) == (1.0, 0.2, 1.0)


def test_the_cell_says_what_the_log_says(tmp_path: Path) -> None:
    record = imported(archive(tmp_path / "a.eval", header(), SAMPLES), family="fam", role="variant").record
    assert (record.cell.model.source, record.cell.model.family) == ("hub:org/name", "fam")
    assert record.cell.runtime.use == "inspect:hf"
    assert (record.cell.hardware.device, record.cell.hardware.name) == ("cuda", "cuda:0")
    assert record.cell.suite.evaluations[0].args == {
        "task": "capitals",
        "task_args": {"region": "all"},
        "scorer": "match",
        "solver": [["generate", {}]],
        "limit": 3,
        "epochs": 2,
        "generate": {"temperature": 0.0},  # how many run at once changes no answer
    }
    assert record.identity is None
    assert record.versions == {"inspect importer": "1", "inspect_ai": "0.3.285"}


@pytest.mark.parametrize(
    ("model", "arguments", "source"),
    [
        ("openai/gpt-x", {}, "inspect:openai/gpt-x"),
        ("hf/local", {"model_path": "/a/folder"}, "path:/a/folder"),
        ("vllm/org/name", {}, "hub:org/name"),
        ("mockllm", {}, "inspect:mockllm"),
    ],
)
def test_a_model_is_of_the_hub_of_a_folder_or_of_a_provider(model, arguments, source, tmp_path: Path) -> None:
    head = header(eval={"model": model, "model_args": arguments})
    assert imported(archive(tmp_path / "a.eval", head, SAMPLES)).record.cell.model.source == source


def test_the_same_questions_pair_and_another_system_message_does_not(tmp_path: Path) -> None:
    changed = sample("fr", 1, "C", "C")
    changed["messages"].insert(0, {"role": "system", "content": "Think."})
    one = scored(imported(archive(tmp_path / "a.eval", header(), [sample("fr", 1, "C"), sample(2, 1, "I")])).rows)
    other = scored(imported(archive(tmp_path / "b.eval", header(), [changed, sample(2, 1, "C")])).rows)
    found = pair(other["inspect", "capitals"], one["inspect", "capitals"])
    assert (found.names, found.unlike) == (("2",), 1)


@pytest.mark.parametrize(
    ("head", "given", "told"),
    [
        (header(status="error"), SAMPLES, "found:   'error'"),
        (None, SAMPLES, "no header"),
        (header(), [], "no samples"),
        (header(results=None), SAMPLES, "nothing was scored"),
    ],
)
def test_a_log_that_is_not_whole_is_refused(head, given, told, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        imported(archive(tmp_path / "a.eval", head, given))
    assert told in str(error.value)


def test_a_sample_that_is_there_twice_in_one_epoch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**header(), "samples": [*SAMPLES, SAMPLES[0]]}))
    with pytest.raises(SourceError, match="twice") as error:
        imported(tmp_path / "a.json")
    assert "fr, epoch 1" in str(error.value)


def test_a_damaged_sample_names_its_member_and_key(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.eval", header(), [SAMPLES[0], {**SAMPLES[1], "epoch": "one"}])
    with pytest.raises(SourceError) as error:
        imported(file)
    assert "a.eval:samples/2_epoch_one.json" in str(error.value)
    assert "key:     epoch" in str(error.value)


def test_a_half_written_archive_is_refused(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.eval", header(), SAMPLES)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged"):
        imported(file)
