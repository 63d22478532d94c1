"""`quantize.gguf`: a float GGUF file packed into one of llama.cpp's types.

A GGUF type is a name for a mixture: "Q4_K_M" stores most matrices in 4-bit blocks, some in 6-bit ones, and falls back
to other types where a row does not fill whole blocks. So what was really stored is counted from the packed tensors and
goes into the record with the true bits per weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

from pydantic import JsonValue

from harness.interfaces import Artifact, StageContext
from harness.spec import REFERENCE, Need, Use

# llama_ftype in llama.h; the order is from most to fewest bits.
TYPES: Final = {
    "F32": 0, "BF16": 32, "F16": 1, "Q8_0": 7,
    "Q6_K": 18, "Q5_1": 9, "Q5_0": 8, "Q5_K_M": 17, "Q5_K_S": 16,
    "Q4_1": 3, "Q4_0": 2, "Q4_K_M": 15, "Q4_K_S": 14, "IQ4_NL": 25, "IQ4_XS": 30,
    "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23,
    "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24,
}  # fmt: skip
NEED_A_MATRIX: Final = frozenset(
    {"IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
)
_MATRIX_KEYS: Final = frozenset({"corpus", "tokens", "sequence"})


@final
@dataclass(frozen=True)
class QuantizeGguf:
    """Weights packed by llama.cpp.

    Does: calls `llama_model_quantize`. `imatrix` (`{corpus: ..., tokens: ..., sequence: ...}`, the arguments of
    `capture.imatrix`) weighs the rounding error of every input column by its mean square. `pure` stores all matrices in
    one type instead of the type's mixture; `keep_output` leaves the output layer (the embedding, where they are one).
    Needs: a float GGUF; for IQ1, IQ2, IQ3_XS, IQ3_XXS and Q2_K_S an importance matrix, without which it refuses.
    Why: what most people run on their own machines; the packed file is what llama.cpp computes with.
    Known: the importance matrix is taken from the reference of the family, not from the model that is quantized. For
    the reference itself that is the same; for a distilled student it is a stand-in, and for a model with other layers
    or widths it is refused. Rows that are no multiple of 256 fall back to other types: see the note `bits_per_weight`.
    Source: llama-quant.cpp of llama.cpp; the k-quants, ggml-org/llama.cpp#1684; importance matrices, #4861.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("llama_cpp", "gguf")
    extra: ClassVar[str | None] = "llama-cpp"
    consumes: ClassVar[frozenset[str]] = frozenset({"gguf"})
    produces: ClassVar[str] = "gguf"
    emulated: ClassVar[bool] = False

    type: str
    imatrix: Mapping[str, JsonValue] | None = None
    pure: bool = False
    keep_output: bool = False

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"type must be one of {', '.join(TYPES)}, not {self.type!r}")
        if self.imatrix is None and self.type in NEED_A_MATRIX:
            raise ValueError(
                f"{self.type} needs an importance matrix: at so few bits llama.cpp refuses to round all columns alike; "
                "add `imatrix: {corpus: 'docstrings:default'}`"
            )
        if self.imatrix is not None and not ("corpus" in self.imatrix and _MATRIX_KEYS.issuperset(self.imatrix)):
            raise ValueError(f"imatrix takes the arguments of capture.imatrix, corpus among them, not {self.imatrix!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.imatrix is None:
            return ()
        capture = Use(use="capture.imatrix", args=dict(self.imatrix))
        return (Need(name="imatrix", source=REFERENCE, stages=(capture,)),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.quantize import llama_cpp_quantizer as packing
        from harness.stages.quantize.proof.coverage import report_coverage
        from harness.stages.quantize.proof.coverage_gguf import prove_gguf

        file = packing.float_gguf(source.path)
        matrix = None
        if self.imatrix is not None:
            matrix = packing.read_matrix(context.artifacts["imatrix"].path, model=file)
        job = packing.Job(file, out / "model.gguf", TYPES[self.type], pure=self.pure, keep_output=self.keep_output)
        packing.quantize(job, matrix=matrix, threads=context.hardware.threads, progress=context.progress)
        packing.describe(job.target, wanted=self.type, report=context.report)
        if self.type not in packing.FLOATS:
            report_coverage(out, prove_gguf(job.target), report=context.report)
        if matrix is not None:
            context.report.notes["imatrix_tokens"] = matrix.tokens
            context.report.labels.append("importance matrix taken from the family's reference")
