"""Checks of how a stage behaves: the same again, nothing but its own folders, and no answer to what has none."""

from __future__ import annotations

import zipfile
from pathlib import Path

from harness.cache import file_digest
from harness.conformance.bench import AGAIN, Bench
from harness.conformance.models import INF, NAN, ODD, PLAIN, SHAPES
from harness.conformance.verdicts import require

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
WEIGHTS = (".safetensors", ".gguf", *PICKLES)


def repeats_itself(bench: Bench) -> str:
    """Two builds with the same seed give the same bytes of weights."""
    first, second = (_weights(bench.build(PLAIN, label=label).path) for label in ("", AGAIN))
    require(bool(first), f"it wrote no weights: {bench.build(PLAIN).error or 'no .safetensors file'}")
    different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    require(not different, f"two builds with seed 0 differ in {', '.join(different)}: draw from context.seed alone")
    return f"two builds with seed 0: {', '.join(sorted(first))} equal byte for byte"


def refuses_what_is_no_number(bench: Bench) -> str:
    """A source with NaN or an infinite weight is refused."""
    told = []
    for name in (NAN, INF):
        built = bench.build(name)
        require(bool(built.error), f"it makes a model of weights that are {name}: raise ModelError instead")
        told.append(built.error)
    return f"both are refused: {told[0]}"


def copes_with_odd_columns(bench: Bench) -> str:
    """Columns that no usual group divides are quantized or refused in words, not crashed on."""
    built, shape = bench.build(ODD), SHAPES[ODD]
    if built.is_refused:
        require(bool(built.error), "it raises Unsupported without a reason")
        return f"{shape.hidden} and {shape.intermediate} columns are refused: {built.error}"
    require(not built.error, f"{shape.hidden} and {shape.intermediate} columns: raise Unsupported, not {built.error}")
    bench.reading(ODD).require()
    return f"{shape.hidden} and {shape.intermediate} columns are quantized, logits are numbers"


def keeps_to_its_folders(bench: Bench) -> str:
    """The source is as it was, and nothing was written but into `out` and `scratch`."""
    found = {one for built in _all(bench) for one in built}
    require(not found, f"it changed {', '.join(sorted(found))}")
    return f"{len(bench.builds)} builds changed nothing of their sources and wrote into out and scratch alone"


def _all(bench: Bench) -> list[tuple[str, ...]]:
    bench.build(PLAIN)
    return [built.trespasses for built in bench.builds.values()]


def leaves_the_process(bench: Bench) -> str:
    """Threads, random numbers and environment variables are afterwards what they were before."""
    bench.build(PLAIN)
    found = {one for built in bench.builds.values() for one in built.leftovers}
    require(not found, f"after it ran these are not what they were: {', '.join(sorted(found))}")
    return "threads, random numbers, environment variables and current folder are as they were"


def writes_no_pickle(bench: Bench) -> str:
    """No file can run code when it is opened."""
    files = [file for file in sorted(bench.require(PLAIN).path.rglob("*")) if file.is_file()]
    found = [file.name for file in files if file.suffix in PICKLES or _holds_a_pickle(file)]
    require(not found, f"{', '.join(found)}: opening such a file can run code; write safetensors")
    return f"{len(files)} files, none a pickle"


def _holds_a_pickle(file: Path) -> bool:
    if file.suffix in WEIGHTS:
        return False
    with file.open("rb") as opened:
        start = opened.read(2)
    if start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # protocols from 2 on
        return True
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())


def _weights(folder: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in sorted(folder.rglob("*")) if file.suffix in WEIGHTS}
