"""Fidelity on tables of logits, where every number can be had a second way."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats

from harness.errors import CorruptArtifact, ModelError, Unsupported
from harness.evaluations.fidelity.fidelity import Fidelity
from harness.interfaces import Artifact, EvaluationContext
from harness.record import Observation
from harness.spec import Hardware
from harness.stages.capture.reference_logits import META, ReferenceMeta, Window
from harness.testing import VOCABULARY, FakeSession, check_plugin, check_summary
from tests.building import artifact

TEXTS = ("the quick brown fox", "jumps over the lazy", "dog while seventeen", "wizards quietly ex.")
LENGTH = len(TEXTS[0])


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32) * 2


def tokens_of(text: str) -> list[int]:
    return [ord(char) for char in text]


def reference(folder: Path, logits_VV: np.ndarray, *, prefix: tuple[int, ...] = (), texts=TEXTS) -> Artifact:
    """Stored answers of a model whose logits after a token are that token's row."""
    folder.mkdir()
    tokens_NT = np.array([[*prefix, *tokens_of(text)] for text in texts])
    meta = ReferenceMeta(
        storage="logits",
        vocabulary=VOCABULARY,
        length=tokens_NT.shape[1],
        prefix=prefix,
        windows=tuple(Window(text=text, predicted_bytes=len(text) - (not prefix)) for text in texts),
    )
    (folder / META).write_text(meta.model_dump_json())
    np.save(folder / "tokens.npy", tokens_NT)
    np.save(folder / "logits.npy", logits_VV[tokens_NT])
    return artifact(folder, "files")


def context(stored: Artifact, scratch: Path) -> EvaluationContext:
    return EvaluationContext(
        artifacts={"reference_logits": stored},
        artifact=stored,
        hardware=Hardware(),
        seed=0,
        load_s=0.0,
        scratch=scratch,
        progress=lambda fraction, message: None,
    )


def observe(tmp_path: Path, ours_VV: np.ndarray, theirs_VV: np.ndarray, **stored) -> list[Observation]:
    used = context(reference(tmp_path / "reference", theirs_VV, **stored), tmp_path)
    return list(Fidelity(windows=len(TEXTS), length=LENGTH).observe(FakeSession(ours_VV, "x"), context=used))


def summary(rows: list[Observation]) -> dict[str, float]:
    return {metric.name: metric.value for metric in Fidelity(windows=len(TEXTS), length=LENGTH).summarize(rows)}


def test_fidelity_is_a_proper_plugin():
    check_plugin("evaluations", Fidelity)


def test_the_reference_is_at_no_distance_from_itself(tmp_path):
    found = summary(observe(tmp_path, table(), table()))
    assert found["kl_mean"] == 0.0
    assert found["kl_max"] == 0.0
    assert found["top1_agreement"] == 1.0
    assert found["ln_perplexity_ratio"] == 0.0
    assert found["perplexity"] == found["perplexity_reference"]
    assert found["flips_right_to_wrong"] == found["flips_wrong_to_right"] == 0.0


def test_every_mean_is_what_scipy_gives_over_all_positions(tmp_path):
    ours_VV, theirs_VV = table(1), table(1) + table(2) / 2
    found = summary(observe(tmp_path, ours_VV, theirs_VV))
    before = np.concatenate([tokens_of(text)[:-1] for text in TEXTS])
    after = np.concatenate([tokens_of(text)[1:] for text in TEXTS])
    ours, theirs = (scipy.special.log_softmax(x[before].astype(float), axis=-1) for x in (ours_VV, theirs_VV))
    kl = scipy.stats.entropy(np.exp(theirs), np.exp(ours), axis=-1)
    nll, nll_ref = -ours[range(len(after)), after], -theirs[range(len(after)), after]
    top, top_ref = ours.argmax(axis=-1), theirs.argmax(axis=-1)
    assert found["kl_mean"] == pytest.approx(kl.mean(), rel=1e-6)
    assert found["kl_max"] == pytest.approx(kl.max(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-6)
    assert found["perplexity_reference"] == pytest.approx(math.exp(nll_ref.mean()), rel=1e-6)
    assert found["ln_perplexity_ratio"] == pytest.approx((nll - nll_ref).mean(), rel=1e-6)
    # One byte a token here, so bits per byte is the mean in bits.
    assert found["bits_per_byte"] == pytest.approx(nll.mean() / math.log(2), rel=1e-6)
    assert found["top1_agreement"] == pytest.approx((top == top_ref).mean())
    assert found["flips_right_to_wrong"] == pytest.approx(((top_ref == after) & (top != after)).mean())
    assert found["flips_wrong_to_right"] == pytest.approx(((top == after) & (top_ref != after)).mean())


def test_a_right_answer_that_became_wrong_is_a_flip(tmp_path):
    # The reference always says the next character of the first text; the candidate says "!" after "q" only.
    text = "abcdefqhijklm"
    theirs_VV = np.zeros((VOCABULARY, VOCABULARY), dtype=np.float32)
    for now, following in pairwise(text):
        theirs_VV[ord(now), ord(following)] = 9
    ours_VV = theirs_VV.copy()
    ours_VV[ord("q"), ord("!")] = 20
    found = summary(observe(tmp_path, ours_VV, theirs_VV, texts=(text,)))
    assert found["flips_right_to_wrong"] == pytest.approx(1 / 12)
    assert found["flips_wrong_to_right"] == 0.0
    assert found["top1_agreement"] == pytest.approx(11 / 12)


def test_quantiles_come_only_with_enough_tokens(tmp_path):
    rows = observe(tmp_path, table(1), table(2))
    assert "kl_p99" not in summary(rows)
    token = next(row for row in rows if row.task.startswith("tokens of"))
    many = [token.model_copy(update={"sample": f"{i:04d}", "values": {"kl": float(i)}}) for i in range(400)]
    found = summary([row for row in rows if not row.task.startswith("tokens of")] + many)
    # Type 7 on 0..399: position 0.99 * 399 = 395.01. Ten times as many would be needed for p99.9.
    assert found["kl_p99"] == pytest.approx(395.01)
    assert "kl_p999" not in found


def test_windows_are_the_unit_of_inference(tmp_path):
    rows = observe(tmp_path, table(1), table(2))
    metric = next(m for m in Fidelity(windows=4, length=LENGTH).summarize(rows) if m.name == "kl_mean")
    means = [row.values["kl_mean"] for row in rows if not row.task.startswith("tokens of")]
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(means), scale=scipy.stats.sem(means))
    assert metric.n == 4
    assert metric.interval is not None
    assert (metric.interval.low, metric.interval.high) == pytest.approx((max(low, 0.0), high))


def test_the_order_of_rows_changes_no_metric(tmp_path):
    rows = observe(tmp_path, table(1), table(2))
    evaluation = Fidelity(windows=len(TEXTS), length=LENGTH)
    check_summary([evaluation.summarize(rows), evaluation.summarize(rows[::-1])])


def test_a_prefix_token_makes_the_first_token_predicted(tmp_path):
    rows = observe(tmp_path, table(1), table(2), prefix=(0,))
    windows = [row for row in rows if not row.task.startswith("tokens of")]
    assert {row.values["tokens"] for row in windows} == {LENGTH}
    assert {row.values["bytes"] for row in windows} == {LENGTH}


@dataclass(frozen=True)
class OtherTokenizer:
    """A session that reads one character as another token."""

    session: FakeSession
    max_length: int = 512

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [token + (token == ord("z")) for token in self.session.encode(text)]

    def decode(self, tokens) -> str:
        return self.session.decode(tokens)


def test_another_tokenizer_is_refused_with_the_first_difference(tmp_path):
    used = context(reference(tmp_path / "reference", table()), tmp_path)
    with pytest.raises(Unsupported, match=r"window 1 .*token 17 is 123 '\{' and not 122"):
        list(Fidelity().observe(OtherTokenizer(FakeSession(table(), "x")), context=used))


def test_a_context_too_short_for_a_window_is_refused(tmp_path):
    used = context(reference(tmp_path / "reference", table()), tmp_path)
    with pytest.raises(Unsupported, match="19 tokens and this runtime's context holds 8"):
        list(Fidelity().observe(OtherTokenizer(FakeSession(table(), "x"), max_length=8), context=used))


def test_another_vocabulary_is_refused(tmp_path):
    used = context(reference(tmp_path / "reference", table()), tmp_path)
    wide_VW = np.pad(table(), ((0, 0), (0, 3)))
    with pytest.raises(Unsupported, match="131"):
        list(Fidelity().observe(FakeSession(wide_VW, "x"), context=used))


def test_logits_that_are_not_finite_are_an_error_of_the_model(tmp_path):
    broken_VV = table()
    broken_VV[ord("q"), 3] = np.nan
    with pytest.raises(ModelError):
        observe(tmp_path, broken_VV, table())


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    stored = reference(tmp_path / "reference", table())
    np.save(stored.path / "tokens.npy", np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(CorruptArtifact, match="do not fit"):
        list(Fidelity().observe(FakeSession(table(), "x"), context=context(stored, tmp_path)))


def test_pickled_arrays_are_refused(tmp_path):
    stored = reference(tmp_path / "reference", table())
    np.save(stored.path / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptArtifact, match="pickle"):
        list(Fidelity().observe(FakeSession(table(), "x"), context=context(stored, tmp_path)))


def test_the_need_is_the_capture_of_the_same_windows():
    (need,) = Fidelity(corpus="docstrings:numpy", windows=3, length=64).needs
    assert need.source == "reference"
    assert str(need.stages[0]) == 'capture.logits(corpus="docstrings:numpy", length=64, windows=3)'


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"length": 4}, {"corpus": "no-scheme"}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="allowed"):
        Fidelity(**wrong)
