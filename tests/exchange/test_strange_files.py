"""Files are strangers': whatever stands in them, an importer answers with a record or with a SourceError."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SourceError
from harness.exchange import reading
from harness.exchange.inspect_ai import InspectLog
from harness.exchange.llama_cpp import LlamaPerplexity
from harness.exchange.lm_eval import LmEvalLog
from harness.exchange.reading import Node, json_lines, parse
from tests.exchange.inspect_logs import header, sample
from tests.exchange.llama_logs import Tokens, divergence

STRANGE = [
    None,
    True,
    0,
    -1,
    10**400,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"": {}},
]
RESULTS: dict[str, Any] = {
    "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1}},
    "group_subtasks": {"t": []},
    "configs": {"t": {"output_type": "multiple_choice", "metric_list": [{"metric": "acc", "aggregation": "mean"}]}},
    "versions": {"t": 1},
    "n-shot": {"t": 0},
    "higher_is_better": {"t": {"acc": True}},
    "n-samples": {"t": {"original": 2, "effective": 2}},
    "config": {"model": "hf", "model_args": {"pretrained": "org/name"}, "device": "cpu", "limit": None},
    "date": 1.7e9,
    "pretty_env_info": "OS: Linux\nCPU(s): 2\n",
    "model_source": "hf",
    "model_name": "org/name",
    "total_evaluation_time_seconds": "1.5",
}
LINE: dict[str, Any] = {
    "doc_id": 0,
    "target": "1",
    "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " a"}, "gen_args_1": {"arg_0": "q", "arg_1": " b"}},
    "resps": [[["-1.0", "True"]], [["-2.0", "False"]]],
    "filter": "none",
    "metrics": ["acc"],
    "doc_hash": "d",
    "prompt_hash": "p",
    "target_hash": "t",
    "acc": 0.5,
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document at which a value stands."""
    yield at
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def spoiled(document: Any, generator: random.Random) -> Any:
    """The document with one value replaced by a strange one."""
    made = copy.deepcopy(document)
    at = generator.choice([one for one in places(made) if one])
    inside = made
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = generator.choice(STRANGE)
    return made


def read_or_refuse(importer: Any, file: Path) -> str:
    """Gives `read`, or `refused` for a refusal that says where."""
    try:
        return "read" if list(importer.read(file)) else "empty"
    except SourceError as error:
        return "refused" if str(file.parent) in str(error) else str(error)


def test_a_spoiled_lm_eval_run_is_read_or_refused(tmp_path: Path) -> None:
    generator, read = random.Random(0), []
    for turn in range(300):
        results, lines = RESULTS, [LINE, {**LINE, "doc_id": 1, "doc_hash": "e"}]
        results, lines = (spoiled(results, generator), lines) if turn % 2 else (results, spoiled(lines, generator))
        (tmp_path / "results_1.json").write_text(json.dumps(results))
        (tmp_path / "samples_t_1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        read.append(read_or_refuse(LmEvalLog(), tmp_path / "results_1.json"))
    assert set(read) == {"read", "refused"}


def test_a_spoiled_inspect_log_is_read_or_refused(tmp_path: Path) -> None:
    generator, read = random.Random(1), []
    whole = {**header(), "samples": [sample("a", 1, "C", "I"), sample("b", 1, "I", 0.5)]}
    for _ in range(300):
        (tmp_path / "a.json").write_text(json.dumps(spoiled(whole, generator)))
        read.append(read_or_refuse(InspectLog(), tmp_path / "a.json"))
    assert set(read) == {"read", "refused"}


def test_a_llama_log_with_lost_lines_or_letters_is_read_or_refused(tmp_path: Path) -> None:
    generator, read = random.Random(2), []
    text = divergence(Tokens.drawn(6, 64), 64)
    for turn in range(300):
        at, width = generator.randrange(len(text)), generator.choice([1, 1, 3, 200])
        put = generator.choice(["", "9", "-", "nan", "\n", "±"]) if turn % 2 else ""
        (tmp_path / "a.log").write_text(text[:at] + put + text[at + width :], encoding="utf-8")
        read.append(read_or_refuse(LlamaPerplexity(), tmp_path / "a.log"))
    assert set(read) == {"read", "refused"}


def test_json_nested_without_end_is_refused() -> None:
    with pytest.raises(SourceError, match="nested"):
        parse("[" * 10**6, "made")


def test_a_number_of_a_million_digits_is_refused() -> None:
    with pytest.raises(SourceError, match="not JSON"):
        parse("1" * 10**6, "made")


def test_files_and_lines_of_any_length_are_not_read_into_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    (tmp_path / "a").write_text('{"a": 1}\n"' + "x" * 200 + '"\n')
    with pytest.raises(SourceError, match="larger"):
        reading.load(tmp_path / "a")
    with pytest.raises(SourceError, match=r"larger") as error:
        list(json_lines(tmp_path / "a"))
    assert f"{tmp_path / 'a'}:2" in str(error.value)


def test_a_missing_key_lists_those_there_are() -> None:
    with pytest.raises(SourceError, match="missing") as error:
        Node({"a": {"b": 1}}, "file:3").get("a").need("c")
    assert "file:3" in str(error.value)
    assert "a.c" in str(error.value)
    assert "'b'" in str(error.value)
