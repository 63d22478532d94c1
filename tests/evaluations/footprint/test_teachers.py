"""Who taught a student, told from lineages."""

import pytest

from harness.evaluations.footprint.teachers import candidate, truth
from harness.spec import Need, Use

ADA = {"source": "hub:x/ada", "revision": "main"}
PRUNED_BOB = {"source": "hub:x/bob", "stages": [{"use": "prune.depth", "args": {"remove": 1}}]}
CANDIDATES = {"ada": candidate(ADA), "bob": candidate(PRUNED_BOB), "us": candidate("reference")}
WRITTEN_BY_ADA = {**ADA, "stages": [{"use": "capture.text", "args": {"tokens": 9}}]}
QUANTIZE = Use(use="quantize.rtn", args={"bits": 4})


def distill(name: str = "logits", **args) -> Use:
    return Use(use=f"distill.{name}", args=args)


@pytest.mark.parametrize(
    ("lineage", "expected"),
    [
        ([distill(teacher=ADA)], "ada"),
        ([Use(use="prune.depth"), distill(teacher=ADA), QUANTIZE, Use(use="convert.gguf")], "ada"),
        ([distill(teacher=PRUNED_BOB)], "bob"),
        # A model before its stages, or at another revision, is another model.
        ([distill(teacher={"source": "hub:x/bob"})], None),
        ([distill(teacher={"source": "hub:x/ada"})], None),
        # Who names no teacher learns from the family's reference.
        ([distill(tokens=9)], "us"),
        ([distill(teacher=None)], "us"),
        ([distill(corpus="docstrings:default")], "us"),
        # The last one counts, if its teacher is a candidate.
        ([distill(teacher=ADA), distill()], "us"),
        ([distill(), distill(teacher=ADA)], "ada"),
        ([distill(teacher=ADA), distill(teacher={"source": "hub:x/dan"})], "ada"),
        # Text that a model wrote makes it a teacher, and then nobody else by default.
        ([distill("sequence", corpus=WRITTEN_BY_ADA)], "ada"),
        ([distill("sequence", corpus={"stages": [{"use": "capture.text"}]})], "us"),
        ([distill("sequence", corpus={"source": "hub:x/ada", "stages": [{"use": "capture.text"}]})], None),
        ([distill(teacher=PRUNED_BOB, corpus=WRITTEN_BY_ADA)], None),
        # Several teachers leave open who it was, unless one alone is a candidate.
        ([distill("multi_teacher", teachers=[ADA, PRUNED_BOB])], None),
        ([distill("multi_teacher", teachers={"a": ADA, "d": {"source": "hub:x/dan"}})], "ada"),
        ([distill(), distill("multi_teacher", teachers=[ADA, PRUNED_BOB])], None),
        # A model that teaches itself takes over nobody's manner.
        ([distill("self.sdft")], None),
        ([distill(teacher=ADA), distill("self.sdft")], "ada"),
        ([distill(teacher=ADA), distill(teacher="its own past")], "ada"),
        ([distill(teacher="its own past")], None),
        # Without a distiller nobody taught it.
        ([QUANTIZE, Use(use="capture.text", args={"teacher": ADA})], None),
        ([], None),
    ],
)
def test_the_teacher_is_the_candidate_that_the_last_such_distiller_learned_from(lineage, expected):
    assert truth(lineage, CANDIDATES) == expected


def test_a_source_alone_and_a_mapping_with_it_are_the_same_candidate():
    assert candidate("hub:x/ada").id == candidate({"source": "hub:x/ada"}).id == Need(name="t", source="hub:x/ada").id


@pytest.mark.parametrize("said", ["nowhere", ":x", "hub:", None, 3, {}, {"source": "nowhere"}])
def test_what_names_no_model_is_refused_with_what_is_allowed(said):
    with pytest.raises(ValueError, match="allowed"):
        candidate(said)
