"""The section that says what quantizers stored."""

from harness.record import ArtifactFacts, StageCost
from harness.reporters.proofs import stored_section
from harness.reporters.summary import summarize
from harness.reporters.tables import Tables
from tests.reporters.world import FakeResults, artifact, cell, record

PROOF = {
    "layers": {"pack-quantized 4 bits, group 64": 200, "pack-quantized 8 bits, group 64": 10},
    "head": "tied",
    "activations": ["not quantized"],
    "share_quantized": 0.789,
    "bits_per_weight": 6.66,
    "bits_per_weight_without_embeddings": 4.27,
    "bits_per_quantized_weight": 4.25,
}


def built(*steps: StageCost) -> ArtifactFacts:
    return artifact().model_copy(update={"costs": (*artifact().costs, *steps)})


def step(name: str, **notes: object) -> StageCost:
    return StageCost(step=name, wall_s=1, cpu_s=1, peak_bytes=1, notes=notes)


def test_every_row_with_a_proof_says_what_is_stored_and_what_computed(tmp_path):
    results = FakeResults()
    results.add(record(cell("reference")))
    proved = built(step("quantize.gptq", coverage=PROOF, reload_difference=0.0123), step("convert.something"))
    results.add(record(cell("gptq4"), artifact=proved))
    results.add(record(cell("no-proof"), artifact=built(step("prune.depth", layers_removed=2))))
    _, shown = stored_section(summarize(results))
    header, _, *rows = shown.splitlines()
    (row,) = rows
    told = dict(zip((c.strip() for c in header.split("|")), (c.strip() for c in row.split("|")), strict=True))
    assert told["Pipeline"] == "gptq4"
    assert told["Stored as"] == "pack-quantized 4 bits, group 64 (200), pack-quantized 8 bits, group 64 (10)"
    assert (told["Share packed"], told["Bits a packed weight"], told["Bits/weight"]) == ("78.9 %", "4.25", "6.66")
    assert (told["without embeddings"], told["Head"], told["Kernel"]) == ("4.27", "tied", "cpu")
    assert (told["Reload"], told["Activations"]) == ("0.0123", "not quantized")
    (page, *_) = Tables().render(results, tmp_path)
    assert "## What is stored, as proved from the files" in page.read_text()


def test_without_a_proof_there_is_no_section(tmp_path):
    results = FakeResults()
    results.add(record(cell("reference")))
    assert list(stored_section(summarize(results))) == []
    (page, *_) = Tables().render(results, tmp_path)
    assert "What is stored" not in page.read_text()
