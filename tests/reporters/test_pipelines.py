import csv
import itertools
import re

import pytest

from harness.record import Observation, Outcome, StageCost
from harness.reporters.findings import signed
from harness.reporters.isobytes import way
from harness.reporters.pipelines import Pipelines
from harness.reporters.variants import Names, variants
from harness.spec import Model, Use
from harness.statistics.attribution import Table, effect
from tests.reporters.world import REFERENCE, FakeResults, answers, artifact, cell, identity, record
from tests.statistics.test_blocks import GRAFTS

PRUNE = Use(use="prune.depth", args={"keep": 20})
QUANTIZE = Use(use="quantize.rtn", args={"bits": 4})
OTHER = Use(use="quantize.rtn", args={"bits": 3})
DISTILL = Use(use="distill.logits", args={"tokens": 1000})
FROZEN = Use(use="distill.logits", args={"tokens": 1000, "quantized": "frozen"})
N = 100


def windows(*kl, tokens=255):
    return [
        Observation(
            evaluation="fidelity",
            task="docs 8x256",
            sample=f"window {index:04d}",
            values={"tokens": tokens, "bytes": 900, "nll": tokens * (3.0 + value), "kl_mean": value},
        )
        for index, value in enumerate(kl)
    ]


def put(results, name, stages, *, right=None, kl=(), **facts):
    """Adds a variant that is right on the first `right` of 100 items; facts: seed, bits, parameters, model, costs."""
    rows = answers("arc", [1.0] * right + [0.0] * (N - right), prompt_hash="p") if right is not None else []
    where = cell(name, stages=stages, seed=facts.get("seed", 0), model=facts.get("model", REFERENCE))
    made, emulated = artifact(emulated=False), facts.get("emulated", False)
    costs = (*made.costs, *facts.get("costs", ()))
    loaded = identity(facts.get("bits", 16.0)).model_copy(update={"parameters": facts.get("parameters", 100_000_000)})
    if emulated:
        made = made.model_copy(update={"nominal_bytes": int(facts["bits"] * 1e6)})
    results.add(
        record(
            where,
            rows,
            identity=loaded,
            artifact=made.model_copy(update={"costs": costs}),
            outcome=Outcome.EMULATED if emulated else Outcome.OK,
        ),
        [*rows, *windows(*kl)],
    )


def stage_cost(stage, wall, *, tokens=0):
    return StageCost(step=str(stage), wall_s=wall, cpu_s=2 * wall, peak_bytes=10**9, tokens=tokens)


@pytest.fixture(scope="module")
def four():
    """A chain and its square: 80 right, 50 pruned, 70 quantized, 30 after both, 70 pruned and distilled."""
    results = FakeResults()
    put(results, "reference", (), right=80, kl=(0.0, 0.0, 0.0))
    put(results, "prune", (PRUNE,), right=50, kl=(1.8, 2.0, 2.2), parameters=75_000_000)
    put(results, "q4", (QUANTIZE,), right=70, kl=(0.1, 0.2, 0.4), bits=4.5)
    put(results, "prune-q4", (PRUNE, QUANTIZE), right=30, kl=(1.5, 2.5, 4.0), bits=3.4)
    costs = (stage_cost(PRUNE, 2.0), stage_cost(DISTILL, 10.0, tokens=1000))
    put(results, "prune-distill", (PRUNE, DISTILL), right=70, kl=(0.5, 0.9, 1.6), parameters=75_000_000, costs=costs)
    put(results, "prune-distill-q4", (PRUNE, DISTILL, QUANTIZE), right=60, kl=(0.6, 1.1, 1.7), bits=4.6)
    return results


def render(results, out, **arguments):
    return {file.name: file for file in Pipelines(**arguments).render(results, out)}


def read(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def report(four, tmp_path_factory):
    return render(four, tmp_path_factory.mktemp("pipelines"), extrapolate_to=8e9)


@pytest.fixture(scope="module")
def page(report):
    return report["pipelines.md"].read_text(encoding="utf-8")


def found(report, what, **wanted):
    rows = [row for row in read(report["attribution.csv"]) if row["what"] == what]
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_a_report_has_the_sections_its_records_can_fill(report, page):
    assert list(report) == ["pipelines.md", "attribution.csv", "costs.csv", "iso_bytes.png", "iso_bytes.svg"]
    assert re.findall("^## (.*)", page, flags=re.M) == [
        "What each stage did",
        "What two stages do together",
        "Gap to the teacher closed",
        "Size and cost",
        "What is best at equal size",
        "What is left against bytes",
    ]


@pytest.mark.parametrize(
    ("asked", "given", "score", "kl"),
    [
        (PRUNE, "", 0.50 - 0.80, 2.0),
        (QUANTIZE, "", 0.70 - 0.80, 0.7 / 3),
        (QUANTIZE, PRUNE, 0.30 - 0.50, 8 / 3 - 2.0),
        (PRUNE, QUANTIZE, 0.30 - 0.70, 8 / 3 - 0.7 / 3),
        (DISTILL, PRUNE, 0.70 - 0.50, 1.0 - 2.0),
        (QUANTIZE, f"{PRUNE} | {DISTILL}", 0.60 - 0.70, 3.4 / 3 - 1.0),
    ],
)
def test_a_stage_did_the_difference_between_with_and_without_it(report, asked, given, score, kl):
    row = found(report, "effect", asked=str(asked), given=str(given), measure="score")
    assert float(row["value"]) == pytest.approx(score)
    assert float(row["low"]) < score < float(row["high"])
    assert row["n"] == "100"
    row = found(report, "effect", asked=str(asked), given=str(given), measure="kl")
    assert float(row["value"]) == pytest.approx(kl)
    assert (row["n"], row["higher_is_better"]) == ("3", "False")


def test_perplexity_is_compared_in_nats_a_token(report):
    # the windows' nll is 3 + KL a token
    row = found(report, "effect", asked=str(PRUNE), given="", measure="nll")
    assert float(row["value"]) == pytest.approx(2.0)


def test_two_stages_interact_by_what_they_do_beyond_their_sum(report, page):
    row = found(report, "interaction", asked=f"{PRUNE} | {QUANTIZE}", given="", measure="score")
    assert float(row["value"]) == pytest.approx(0.30 - 0.50 - 0.70 + 0.80)
    row = found(report, "interaction", asked=f"{PRUNE} | {QUANTIZE}", given="", measure="kl")
    assert float(row["value"]) == pytest.approx(8 / 3 - 2.0 - 0.7 / 3)
    assert re.search(r"\| \*\*prune.depth\*\* → \*\*quantize.rtn\*\* +\| +-0.10 \[", page)


def test_a_student_is_measured_from_the_same_pipeline_without_distilling(report):
    row = found(report, "gap closed", pipeline="prune-distill", measure="score")
    assert row["given"] == "prune"
    assert float(row["value"]) == pytest.approx((70 - 50) / (80 - 50))
    # KL falls from 2 to 1 where the teacher has 0: half the way
    row = found(report, "gap closed", pipeline="prune-distill", measure="kl")
    assert float(row["value"]) == pytest.approx(0.5)
    row = found(report, "gap closed", pipeline="prune-distill-q4", measure="score")
    assert row["given"] == "prune-q4"
    assert float(row["value"]) == pytest.approx((60 - 30) / (80 - 30))


def test_without_that_floor_the_gap_starts_at_guessing(tmp_path):
    results = FakeResults()
    put(results, "reference", (), right=80)
    put(results, "prune-distill", (PRUNE, DISTILL), right=70, kl=(1.0, 2.0))
    row = found(render(results, tmp_path), "gap closed", measure="score")
    # guessing scores 0.25 on these items
    assert (row["given"], float(row["value"])) == ("guessing", pytest.approx((0.70 - 0.25) / (0.80 - 0.25)))


def test_a_stage_that_names_its_teacher_is_measured_against_that_one(tmp_path):
    results, small = FakeResults(), Model(family=REFERENCE.family, source="lab:teacher", role="variant")
    taught = Use(use="distill.logits", args={"tokens": 1000, "teacher": {"source": "lab:teacher"}})
    put(results, "reference", (), right=80)
    put(results, "reference", (), right=60, model=small)
    put(results, "prune", (PRUNE,), right=40)
    put(results, "prune-distill", (PRUNE, taught), right=50)
    row = found(render(results, tmp_path), "gap closed", measure="score")
    assert (row["asked"], float(row["value"])) == ("teacher", pytest.approx((50 - 40) / (60 - 40)))


def test_stages_of_which_no_single_one_can_be_left_out_are_attributed_together(tmp_path):
    results = FakeResults()
    put(results, "reference", (), right=80)
    put(results, "prune-q4", (PRUNE, QUANTIZE), right=30)
    rows = read(render(results, tmp_path)["attribution.csv"])
    assert [(row["what"], row["asked"], float(row["value"])) for row in rows] == [
        ("effect", f"{PRUNE} | {QUANTIZE}", pytest.approx(-0.5))
    ]


def test_items_asked_with_another_prompt_are_not_compared(tmp_path):
    results = FakeResults()
    for name, stages, prompts in (("reference", (), "aab"), ("p", (PRUNE,), "aaa"), ("pd", (PRUNE, DISTILL), "aaa")):
        rows = [answers("arc", [1.0] * 3, prompt_hash=prompt)[index] for index, prompt in enumerate(prompts)]
        results.add(record(cell(name, stages=stages), rows), rows)
    rows = {row["asked"]: row["n"] for row in read(render(results, tmp_path)["attribution.csv"])}
    assert rows[str(PRUNE)] == "2"
    assert rows[str(DISTILL)] == "3"


def test_costs_are_those_of_the_stages_and_flops_go_by_parameters(report):
    rows = {(row["pipeline"], row["step"]): row for row in read(report["costs.csv"])}
    step = rows["prune-distill", str(DISTILL)]
    # (6 x 75 M + 2 x 100 M) x 1000 tokens = 6.5e11, in 10 s
    assert float(step["training_flops"]) == pytest.approx(6.5e11)
    assert float(step["achieved_flops_per_s"]) == pytest.approx(6.5e10)
    # a reference of 8 B, 80 times as large, teaches a student of 6 B: 80 times the seconds
    assert float(step["extrapolated_s"]) == pytest.approx(800.0)
    total = rows["prune-distill", "total"]
    assert (float(total["wall_s"]), float(total["cpu_s"]), total["tokens"]) == (12.0, 24.0, "1000")
    assert float(total["flop_ratio"]) == pytest.approx(0.75)
    assert float(rows["q4", "total"]["compression"]) == pytest.approx(16 / 4.5, rel=1e-6)
    assert float(total["retention"]) == pytest.approx(70 / 80)


def test_extrapolated_seconds_are_called_so_and_only_there_when_asked_for(four, page, tmp_path):
    assert "| prune.depth 2.0 s → distill.logits 10.0 s (1,000 tokens) |" in page
    assert "Distilling at 8 B (extrapolated, not measured)" in page
    assert "13 min" in page  # 800 s
    plain = render(four, tmp_path)
    assert "xtrapolated" not in plain["pipelines.md"].read_text(encoding="utf-8")
    assert "extrapolated_s" not in read(plain["costs.csv"])[0]


@pytest.mark.parametrize("size", [0, -1.0, float("inf"), float("nan")])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="extrapolate_to is"):
        Pipelines(extrapolate_to=size)


def test_emulated_sizes_are_those_of_packing_and_stand_in_parentheses(tmp_path):
    results = FakeResults()
    put(results, "reference", (), right=80)
    put(results, "pq", (PRUNE, QUANTIZE), right=60, bits=50.0, emulated=True)  # 50 MB if packed
    files = render(results, tmp_path)
    text = files["pipelines.md"].read_text(encoding="utf-8")
    assert "(50.0)" in text
    row = next(row for row in read(files["costs.csv"]) if row["pipeline"] == "pq")
    assert (row["bytes"], row["is_emulated"]) == ("50000000", "True")


def test_pairs_of_equal_bytes_are_within_a_tenth(report, page):
    # prune-distill-q4 has 4.6 bits, q4 has 4.5: 60 against 70 right
    row = found(report, "equal bytes", measure="score")
    assert (row["pipeline"], row["given"]) == ("prune-distill-q4", "q4")
    assert float(row["value"]) == pytest.approx(-0.10)
    assert "q4 (quantized only): 0.7" in page


def test_sizes_more_than_a_tenth_apart_are_no_pair(tmp_path):
    results = FakeResults()
    put(results, "reference", (), right=80)
    put(results, "q4", (QUANTIZE,), right=70, bits=4.0)
    put(results, "dq", (DISTILL, QUANTIZE), right=70, bits=4.5)  # 0.5 of 4.5 is 11 %
    rows = read(render(results, tmp_path)["attribution.csv"])
    assert "equal bytes" not in {row["what"] for row in rows}


def test_ways_are_named_by_their_kinds_of_stages(four):
    named = {variant.row.label: way(variant) for variant in variants(four)}
    assert named["reference"] == "as it came"
    assert named["q4"] == "quantized only"
    assert named["prune-distill-q4"] == "pruned + distilled + quantized"


def test_stages_are_named_with_the_arguments_that_differ():
    results = FakeResults()
    put(results, "a", (PRUNE, QUANTIZE), right=1)
    put(results, "b", (PRUNE, OTHER), right=1)
    names = Names(variants(results))
    assert names.stages((PRUNE, OTHER)) == "prune.depth → quantize.rtn(bits=3)"


def test_seeds_are_averaged_item_by_item_and_each_is_in_the_file(tmp_path):
    results = FakeResults()
    for seed, right in enumerate((40, 50, 60)):
        put(results, "reference", (), right=80, seed=seed)
        put(results, "prune-distill", (PRUNE, DISTILL), right=right, seed=seed)
    files = render(results, tmp_path)
    rows = [row for row in read(files["attribution.csv"]) if row["what"] == "effect"]
    assert [row["seeds"] for row in rows] == ["0 1 2", "0", "1", "2"]
    assert [float(row["value"]) for row in rows] == pytest.approx([-0.3, -0.4, -0.3, -0.2])
    # 100 items, not 300: seeds are no new items
    assert {row["n"] for row in rows} == {"100"}
    # item means: 40 of 1, 10 of 2/3, 10 of 1/3, 40 of 0 against 80 of 1
    mean = tuple([1.0] * 40 + [2 / 3] * 10 + [1 / 3] * 10 + [0.0] * 40)
    oracle = effect([Table(((1.0,) * 80 + (0.0,) * 20, mean))]).interval
    assert (float(rows[0]["low"]), float(rows[0]["high"])) == pytest.approx((oracle.low, oracle.high))


ORDERS = {
    "P-D-Q": ((PRUNE, DISTILL, QUANTIZE),),
    "P-Q-D": ((PRUNE, QUANTIZE, FROZEN), (PRUNE, QUANTIZE, DISTILL)),
    "Q-P-D": ((QUANTIZE, PRUNE, FROZEN), (QUANTIZE, PRUNE, DISTILL)),
    "D-P-Q": ((DISTILL, PRUNE, QUANTIZE),),
}


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """Four orders under six seeds, whose KL when frozen is a textbook's table; when trainable all differ alike."""
    results = FakeResults()
    for (order, ways), values in zip(ORDERS.items(), GRAFTS, strict=True):
        for index, stages in enumerate(ways):
            for seed, value in enumerate(values):
                # When trainable, orders that train after quantizing repeat the numbers of P-D-Q with a small wobble.
                kl = (GRAFTS[0][seed] + 0.5 * (-1) ** seed if index else value) / 100
                put(results, f"{order}{index}", stages, kl=(kl - 0.1, kl + 0.1), seed=seed)
    out = tmp_path_factory.mktemp("orders")
    return results, render(results, out)


def test_orders_are_tested_with_seeds_as_blocks(orders):
    _, files = orders
    rows = [row for row in read(files["orderings.csv"]) if row["quantized_weights"] == "frozen"]
    assert {row["measure"] for row in rows} == {"kl"}
    assert len(rows) == 4 * 6
    assert float(rows[0]["f"]) == pytest.approx(8.11, abs=0.005)  # Montgomery's example 4.1
    assert float(rows[0]["p"]) == pytest.approx(0.0019, abs=5e-5)
    assert (rows[0]["lowest"], rows[0]["highest"]) == ("D-P-Q", "P-D-Q")
    seen = {(row["order"], int(row["seed"])): float(row["value"]) for row in rows}
    for (order, _), values in zip(ORDERS.items(), GRAFTS, strict=True):
        assert [100 * seen[order, seed] for seed in range(6)] == pytest.approx(values)


def test_an_order_that_trains_nothing_after_quantizing_is_the_same_in_both_columns(orders):
    _, files = orders
    rows = {(row["order"], row["quantized_weights"], row["seed"]): row for row in read(files["orderings.csv"])}
    for order, seed in itertools.product(("P-D-Q", "D-P-Q"), "012345"):
        assert rows[order, "frozen", seed]["value"] == rows[order, "trainable", seed]["value"]
    assert rows["P-Q-D", "frozen", "0"]["value"] != rows["P-Q-D", "trainable", "0"]["value"]


def test_the_answer_is_a_sentence_made_from_the_numbers(orders):
    _, files = orders
    text = files["pipelines.md"].read_text(encoding="utf-8")
    (sentence,) = [line for line in text.splitlines() if line.startswith("- KL: ")]
    assert "the order of the stages matters when quantized weights are frozen (F(3, 15) = 8.11, p = 0.0019;" in sentence
    assert "farthest apart D-P-Q 0.858, P-D-Q 0.928, Tukey p 0.0021" in sentence
    assert "when quantized weights are trainable (F(3, 15) = " in sentence
    assert "| D-P-Q   | 0.858 [0.789, 0.907] |" in text


def test_an_effect_that_seeds_can_explain_is_said_not_to_be_shown(tmp_path):
    results = FakeResults()
    for seed, values in enumerate([(70, 71), (72, 70), (69, 70)]):
        for stages, right in zip(((PRUNE, DISTILL, QUANTIZE), (DISTILL, PRUNE, QUANTIZE)), values, strict=True):
            put(results, stages[0].use, stages, right=right, seed=seed)
    text = render(results, tmp_path)["pipelines.md"].read_text(encoding="utf-8")
    # differences 0.01, -0.02, 0.01: mean 0, so F = 0 and p = 1
    assert (
        "- Score: the order of the stages is not shown to matter when quantized weights are frozen (F(1, 2) = " in text
    )


@pytest.mark.parametrize(
    "kept",
    [
        lambda one: one.cell.seed == 0,
        lambda one: one.cell.pipeline.name == "P-D-Q0",
    ],
    ids=["one seed", "one order"],
)
def test_orders_need_two_orders_and_two_seeds(orders, tmp_path, kept):
    results, _ = orders
    fewer = FakeResults(results.rows, [one for one in results.kept if kept(one)])
    assert "orderings.csv" not in render(fewer, tmp_path)


def test_orders_of_stages_with_other_arguments_are_not_compared(tmp_path):
    results = FakeResults()
    for seed in (0, 1):
        put(results, "a", (PRUNE, DISTILL, QUANTIZE), right=50 + seed, seed=seed)
        put(results, "b", (OTHER, PRUNE, DISTILL), right=60, seed=seed)
    assert "orderings.csv" not in render(results, tmp_path)


def test_pipelines_of_one_stage_are_left_to_the_main_report(tmp_path):
    results = FakeResults()
    put(results, "reference", (), right=80)
    put(results, "q4", (QUANTIZE,), right=70)
    assert render(results, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    assert render(FakeResults(), tmp_path) == {}


def test_the_same_records_give_the_same_bytes(four, report, tmp_path):
    turned = FakeResults(four.rows, list(reversed(four.kept)))
    again = render(turned, tmp_path, extrapolate_to=8e9)
    assert list(again) == list(report)
    for name, file in again.items():
        assert file.read_bytes() == report[name].read_bytes(), name


def test_the_figure_names_every_way_and_pipeline(report):
    drawn = report["iso_bytes.svg"].read_text(encoding="utf-8")
    assert report["iso_bytes.png"].read_bytes().startswith(b"\x89PNG")
    for text in ("Score at equal size", "KL at equal size", "quantized only", "pruned + distilled", ">prune-q4<"):
        assert text in drawn


def test_no_table_is_too_wide_to_read(page, orders):
    for text in (page, orders[1]["pipelines.md"].read_text(encoding="utf-8")):
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
            assert {len(re.split(r"(?<!\\)\|", line)) - 2 for line in block.splitlines()} <= set(range(1, 13))


def test_a_signed_difference_never_rounds_an_end_of_its_interval_to_zero():
    before, after = (1.0,) * 60 + (0.0,) * 40, (1.0,) * 50 + (0.0,) * 50
    assert re.fullmatch(r"-0\.100 \[-0\.1\d\d, -0\.0\d\d\]", signed(effect([Table((before, after))])))
