"""The plan of score batches: complete, within its budget, and blind to the order of requests."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from harness.interfaces import ScoreRequest
from harness.runtimes.batching import Budget, branch_packs, packed, plan

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(tuple)
requests = st.lists(
    st.builds(ScoreRequest, context=tokens, continuation=st.lists(st.integers(0, 3), min_size=1, max_size=5)),
    max_size=20,
)
budgets = st.builds(
    Budget,
    tokens=st.integers(1, 400),
    cached=st.integers(1, 800),
    scored=st.integers(1, 60),
    columns=st.sampled_from([0, 30, 10_000]),
)


@given(requests=requests, budget=budgets)
def test_every_distinct_request_is_planned_exactly_once(requests: list[ScoreRequest], budget: Budget) -> None:
    planned = [
        (row.context, continuation)
        for cluster in plan(requests, budget)
        for pack in cluster.packs
        for row in pack
        for continuation in row.continuations
    ]
    assert Counter(planned) == Counter({(tuple(r.context), tuple(r.continuation)) for r in requests})


@given(requests=requests, budget=budgets)
def test_a_pack_of_several_rows_is_within_the_budget(requests: list[ScoreRequest], budget: Budget) -> None:
    for cluster in plan(requests, budget):
        for pack in cluster.packs:
            longest = max(len(row.tokens) for row in pack)
            if len(pack) > 1:
                assert len(pack) * (longest - len(cluster.prefix)) <= budget.tokens
                assert len(pack) * longest <= budget.cached
                assert sum(row.scored for row in pack) <= budget.scored
            for branches in branch_packs(pack, budget):
                new = max(len(branch.continuation) for branch in branches) - 1
                assert longest + new <= budget.columns
                assert len(branches) == 1 or len(branches) * (longest + new) <= budget.cached


@given(requests=requests, budget=budgets, seed=st.integers(0, 9))
def test_the_order_of_requests_changes_nothing(requests: list[ScoreRequest], budget: Budget, seed: int) -> None:
    shuffled = random.Random(seed).sample(requests, len(requests))
    assert list(plan(shuffled, budget)) == list(plan(requests, budget))


def test_contexts_that_begin_alike_share_their_beginning_but_never_their_last_token() -> None:
    examples = list(range(100))
    requests = [ScoreRequest([*examples, question], [1, 2]) for question in (7, 8)] + [ScoreRequest(examples, [1])]
    (cluster,) = plan(requests, Budget(tokens=400, cached=4000, scored=100, columns=10_000))
    # The shortest context is the examples themselves: its last token must run to give a prediction.
    assert cluster.prefix == tuple(range(99))
    assert sum(len(pack) for pack in cluster.packs) == 3


def test_without_an_exact_cache_nothing_is_shared_but_single_tokens_of_one_context() -> None:
    context = list(range(100))
    requests = [ScoreRequest(context, [1, 2]), ScoreRequest(context, [1, 3]), ScoreRequest(context[:50], [1, 2])]
    clusters = list(plan(requests, Budget(tokens=400, cached=4000, scored=100, columns=0)))
    rows = [row for cluster in clusters for pack in cluster.packs for row in pack]
    assert [cluster.prefix for cluster in clusters] == [()]
    assert not any(row.is_tree for row in rows)


def test_an_item_that_does_not_fit_runs_alone() -> None:
    assert list(packed([5, 1, 1], lambda pack: sum(pack) <= 2)) == [[5], [1, 1]]
