"""Importing llama-perplexity's output; token values are made up here, printed as the tool prints, and recovered."""

import math
from pathlib import Path

import numpy as np
import pytest

from harness.errors import SourceError
from harness.exchange import _llama_windows
from harness.exchange._llama_log import Estimate
from harness.exchange._llama_metrics import BY_TOOL, BY_WINDOW
from harness.exchange.imported import Imported
from harness.exchange.llama_cpp import LlamaPerplexity
from harness.record import Metric
from harness.statistics.windows import is_window
from tests.exchange.llama_logs import LOADING, Tokens, divergence, perplexity, saved

CONTEXT = 64  # a chunk scores 64 - 1 - 32 = 31 tokens
TOKENS = Tokens.drawn(20, CONTEXT)


def imported(file: Path, **arguments: object) -> Imported:
    (found,) = LlamaPerplexity(**arguments).read(file)  # type: ignore[arg-type]
    return found


def metrics(found: Imported) -> dict[str, Metric]:
    return {one.name: one for one in found.record.metrics}


@pytest.fixture
def divergence_log(tmp_path: Path) -> Path:
    return saved(tmp_path / "kl.log", divergence(TOKENS, CONTEXT))


def test_chunks_of_a_divergence_run_come_back_as_fidelity_windows(divergence_log: Path) -> None:
    rows = imported(divergence_log).rows
    assert len(rows) == 20
    assert all(is_window(row) for row in rows)
    assert all(row.values["tokens"] == 31 for row in rows)
    # Printed means are rounded to 4 or 5 places, of which chunk k multiplies the error by up to 2k - 1 = 39.
    for index, row in enumerate(rows):
        assert row.values["nll"] / 31 == pytest.approx(TOKENS.nll[index].mean(), abs=39 * 0.5e-4 / 8)
        assert row.values["nll_ref"] / 31 == pytest.approx(
            TOKENS.nll_base[index].mean(), abs=39 * (0.5e-4 / 8 + 0.5e-5)
        )
        assert row.values["kl_mean"] == pytest.approx(TOKENS.kl[index].mean(), abs=39 * 0.5e-5)
        assert row.values["top1_same"] == TOKENS.same[index].sum()


def test_sums_of_windows_are_those_of_the_last_block(divergence_log: Path) -> None:
    found = metrics(imported(divergence_log))
    expected = {
        "perplexity": (math.exp(TOKENS.nll.mean()), 1e-6),
        "perplexity_reference": (math.exp(TOKENS.nll_base.mean()), 2e-5),
        "ln_perplexity_ratio": ((TOKENS.nll - TOKENS.nll_base).mean(), 1e-6),
        "kl_mean": (TOKENS.kl.mean(), 1e-6),
        "top1_agreement": (TOKENS.same.mean(), 1e-9),
        "kl_max": (TOKENS.kl.max(), 1e-6),
        "kl_p99": (np.quantile(TOKENS.kl, 0.99), 1e-6),
        "kl_p999": (np.quantile(TOKENS.kl, 0.999), 1e-6),
    }
    assert found.keys() == expected.keys()
    for name, (value, tolerance) in expected.items():
        assert found[name].value == pytest.approx(value, abs=tolerance), name
    assert found["kl_mean"].n == 20
    assert found["kl_max"].n == 20 * 31


def test_the_interval_over_windows_is_students_t_of_chunk_means(divergence_log: Path) -> None:
    from scipy import stats

    interval = metrics(imported(divergence_log))["kl_mean"].interval
    # Chunks are equally long, so the mean per token is the mean of chunk means.
    low, high = stats.t.interval(0.95, 19, TOKENS.kl.mean(), stats.sem(TOKENS.kl.mean(axis=1)))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)
    assert interval.method == BY_WINDOW


def test_a_column_that_rounding_has_eaten_keeps_the_tools_own_error(tmp_path: Path) -> None:
    # 300 chunks whose divergence differs in the fifth place: 599 half units of 1e-5 are 3e-3.
    flat = Tokens(*(np.repeat(one[:1], 300, axis=0) for one in (TOKENS.nll, TOKENS.nll_base, TOKENS.kl, TOKENS.same)))
    steady = Tokens(flat.nll + np.random.default_rng(1).normal(0, 1, (300, 1)), flat.nll_base, flat.kl, flat.same)
    found = imported(saved(tmp_path / "a.log", divergence(steady, CONTEXT)))
    kl = metrics(found)["kl_mean"]
    assert all("kl_mean" not in row.values for row in found.rows)
    assert kl.interval.method == BY_TOOL
    error = math.sqrt(steady.kl.var() / (steady.kl.size - 1))
    assert kl.interval.high - kl.value == pytest.approx(1.959964 * error, abs=2e-6)
    assert metrics(found)["perplexity"].interval.method == BY_WINDOW
    assert any("no windows of kl" in gap.reason for gap in found.record.gaps)


def test_perplexity_alone_gives_windows_of_likelihood(tmp_path: Path) -> None:
    found = imported(saved(tmp_path / "a.log", perplexity(TOKENS, CONTEXT)), text="wikitext-2")
    assert [row.values.keys() for row in found.rows] == [{"tokens", "nll"}] * 20
    for index, row in enumerate(found.rows):
        assert row.values["nll"] / 31 == pytest.approx(TOKENS.nll[index].mean(), abs=39 * 0.5e-4 / 8)
    assert metrics(found).keys() == {"perplexity"}
    assert found.record.gaps == ()


def test_chunks_are_differences_of_running_means_by_hand() -> None:
    # Means 2, 3 and 3 over one, two and three chunks: the chunks are 2, 2*3 - 2 = 4 and 3*3 - 2*3 = 3; half a unit of
    # 0.01 counts once, then 2 + 1 and 3 + 2 times.
    values, errors = _llama_windows._differences([Estimate(value, None, 0.01) for value in (2.0, 3.0, 3.0)])
    assert values == [2.0, 4.0, 3.0]
    assert errors == pytest.approx([0.01, 0.03, 0.05])


def test_a_published_log_gives_the_chunks_that_its_means_imply(tmp_path: Path) -> None:
    # The first three chunks of a published run of Llama 3 8B: ln 6.2578 = 1.83383, 2 ln 7.0820 - ln 6.2578 = 2.08128,
    # 3 ln 7.6175 - 2 ln 7.0820 = 2.17623; a chunk of 512 scores 255 tokens.
    text = (
        "llama_model_loader: loaded meta data with 1 key-value pairs and 1 tensors from a.gguf (version GGUF V3)\n"
        "perplexity: calculating perplexity over 3 chunks, n_ctx=512, batch_size=2048, n_seq=4\n"
        "perplexity: 17.71 seconds per pass - ETA 41.60 minutes\n"
        "[1]6.2578,[2]7.0820,[3]7.6175,\nFinal estimate: PPL = 7.6175 +/- 0.50000\n"
    )
    rows = imported(saved(tmp_path / "a.log", text)).rows
    assert [row.values["nll"] / 255 for row in rows] == pytest.approx([1.83383, 2.08128, 2.17623], abs=1e-5)


def test_lines_with_a_time_stamp_before_them_are_read_alike(divergence_log: Path, tmp_path: Path) -> None:
    stamped = saved(tmp_path / "b.log", divergence(TOKENS, CONTEXT, stamp="0.04.581.370 I "))
    assert imported(stamped).rows == imported(divergence_log).rows


def test_without_a_context_there_are_no_windows_and_the_record_says_how_to_get_them(tmp_path: Path) -> None:
    text = "\n".join(line for line in divergence(TOKENS, CONTEXT).splitlines() if "n_ctx" not in line)
    file = saved(tmp_path / "a.log", text)
    found = imported(file, text="t")
    assert found.rows == ()
    assert "kl_max" not in metrics(found)
    assert metrics(found)["kl_mean"].interval.method == BY_TOOL
    assert "`context`" in found.record.gaps[0].remedy
    assert len(imported(file, text="t", context=CONTEXT).rows) == 20


def test_a_context_that_the_printed_shares_contradict_is_not_believed(tmp_path: Path) -> None:
    text = divergence(TOKENS, CONTEXT)
    longer = text.replace(f"n_ctx         = {CONTEXT}", "n_ctx         = 128")
    assert imported(saved(tmp_path / "a.log", longer)).rows == ()
    with pytest.raises(SourceError, match="not of that context"):
        imported(saved(tmp_path / "b.log", text), context=128)


def test_the_cell_is_named_by_the_log_and_the_text_by_the_user(divergence_log: Path) -> None:
    record = imported(divergence_log, text="wikitext-2", family="tiny", pipeline="q4_k_m").record
    assert record.cell.model.source == "path:models/tiny-q4.gguf"
    assert record.cell.runtime.use == "llama_cpp:llama-perplexity"
    assert record.cell.suite.name == "llama-perplexity wikitext-2"
    assert record.versions["llama.cpp"] == "5092 (d3bd7193)"
    assert record.machine["run"]["file_type"] == "Q4_K - Medium"
    assert record.identity is None


def test_a_log_that_names_no_model_asks_for_one(tmp_path: Path) -> None:
    text = divergence(TOKENS, CONTEXT).removeprefix(LOADING.format(context=CONTEXT))
    file = saved(tmp_path / "a.log", text)
    with pytest.raises(SourceError, match="which model"):
        imported(file)
    assert imported(file, model="path:/m.gguf", context=CONTEXT).record.cell.model.source == "path:/m.gguf"


def test_a_missing_chunk_names_its_line(tmp_path: Path) -> None:
    lines = divergence(TOKENS, CONTEXT).splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("  13  ")]
    del lines[at]
    (after,) = [n for n, line in enumerate(lines) if line.startswith("  14  ")]
    with pytest.raises(SourceError, match=rf"a\.log:{after + 1}\n") as error:
        imported(saved(tmp_path / "a.log", "\n".join(lines)))
    assert "chunk 14" in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[: text.index("[17]")], "16 chunks and no last estimate"),
        (lambda text: text.replace("Final estimate", "Final"), "no last estimate"),
        (lambda text: text.replace("PPL = ", "PPL = 1"), "disagree"),
        (lambda text: "nothing of that kind", "no output of llama-perplexity"),
        (lambda text: text.replace("[3]", "[4]"), "chunk 4"),
        (lambda text: text[: text.index("[5]")] + "[5]nan," + text[text.index("[6]") :], "not a number"),
        (
            lambda text: "Will perform strided perplexity calculation -> adjusting context size from 1 to 2\n" + text,
            "stride",
        ),
    ],
)
def test_a_log_that_is_not_whole_is_refused(change, told, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        imported(saved(tmp_path / "a.log", change(perplexity(TOKENS, CONTEXT))))
    assert told in str(error.value)
