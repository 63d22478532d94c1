"""Rows to metrics: sums that can be done by hand."""

import math

import pytest

from harness.evaluations.tasks.lm_eval import NAME, LmEval
from harness.record import Metric, Observation
from harness.testing import check_summary

TASK = LmEval(task="any")


def rows(*values: dict) -> list[Observation]:
    return [Observation(evaluation=NAME, task="any", sample=str(n), values=one) for n, one in enumerate(values)]


def named(*values: dict) -> dict[str, Metric]:
    return {metric.name: metric for metric in TASK.summarize(rows(*values))}


def test_a_score_is_the_mean_with_its_chance_floor_and_wilsons_interval() -> None:
    found = named(*({"score": float(n < 3), "acc": float(n < 3), "chance": 0.25 + n % 2 * 0.25} for n in range(4)))
    assert found["score"].value == found["acc"].value == 0.75
    assert found["score"].chance == 0.375
    assert (found["score"].n, found["score"].unit, found["score"].higher_is_better) == (4, "fraction", True)
    assert found["score"].interval.method == "wilson"


def test_without_a_score_in_every_row_there_is_none() -> None:
    assert "score" not in named({"acc": 1.0, "score": 1.0}, {"acc": 0.0})


def test_chance_is_left_out_when_a_row_does_not_know_it() -> None:
    assert named({"score": 1.0, "chance": 0.5}, {"score": 0.0})["score"].chance is None


def test_the_cost_of_texts_is_total_over_total() -> None:
    found = named(
        {"logprob": -80 * math.log(2), "bytes": 100, "words": 10, "lower_is_better": "bits_per_byte byte_perplexity"},
        {"logprob": -220 * math.log(2), "bytes": 200, "words": 30, "lower_is_better": "word_perplexity"},
    )
    # 300 bits over 300 bytes and 40 words.
    assert found["bits_per_byte"].value == pytest.approx(1.0)
    assert found["byte_perplexity"].value == pytest.approx(2.0)
    assert found["word_perplexity"].value == pytest.approx(2**7.5)
    assert found["bits_per_byte"].unit == "bit/byte"
    assert not any(metric.higher_is_better for metric in found.values())
    assert set(found) == {"bits_per_byte", "byte_perplexity", "word_perplexity"}


def test_the_interval_of_a_cost_is_students_t_of_the_linearized_ratio() -> None:
    bits = named({"logprob": -80 * math.log(2), "bytes": 100}, {"logprob": -220 * math.log(2), "bytes": 200})[
        "bits_per_byte"
    ]
    # R = 1, mean size 150: the values are 1 - 20/150 and 1 + 20/150; their standard error is 20/150, t(1) is 12.7062.
    assert bits.interval.high == pytest.approx(1 + 12.7062 * 20 / 150, rel=1e-4)
    assert bits.interval.method == "student-t"


def test_a_perplexity_is_the_exponential_of_the_mean_cost() -> None:
    found = named({"perplexity:perplexity": -1.0}, {"perplexity:perplexity": -3.0})
    assert found["perplexity"].value == pytest.approx(math.exp(2))


def test_a_metric_of_the_whole_corpus_is_computed_by_lm_evals_own_function() -> None:
    # Gold and predicted classes: two right of three, none wrongly called 1, so precision 1, recall 1/2, F1 2/3.
    found = named({"f1:f1": "[1, 1]"}, {"f1:f1": "[1, 0]"}, {"f1:f1": "[0, 0]"})
    assert found["f1"].value == pytest.approx(2 / 3)


def test_what_only_the_task_can_aggregate_is_named_in_a_caveat() -> None:
    found = named({"score": 1.0, "odd:custom": 3.0}, {"score": 0.0, "odd:custom": 4.0})
    assert set(found) == {"score"}
    assert "odd" in found["score"].caveats[0]


def test_no_rows_give_no_metrics() -> None:
    assert TASK.summarize([]) == ()


def test_the_order_of_rows_does_not_matter() -> None:
    some = rows(*({"score": n / 7, "acc": n / 7, "logprob": -1.0 / (n + 1), "bytes": n + 3} for n in range(7)))
    check_summary(TASK.summarize(order) for order in (some, some[::-1], some[3:] + some[:3]))
