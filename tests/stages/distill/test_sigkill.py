"""A training process killed with SIGKILL, started again, writes the very weights of one that was left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.sources.corpus import write_documents
from tests.tiny import TEXT, tiny_llama

pytest.importorskip("torch")

CHILD = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from harness.stages.distill.logits import DistillLogits
from tests.building import artifact, context

folder, out, scratch, killed_at = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

def progress(fraction, message):
    if message.startswith(f"step {killed_at} of "):
        os.kill(os.getpid(), signal.SIGKILL)

used = context(scratch, teacher=artifact(folder / "teacher", "hf"), corpus=artifact(folder / "corpus", "text"))
out.mkdir(exist_ok=True)
DistillLogits(tokens=512, batch=2, sequence=32, learning_rate=3e-3, heldout_tokens=0, checkpoint_every=2).apply(
    artifact(folder / "student", "hf"), out, context=replace(used, progress=progress)
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("world")
    tiny_llama(made / "teacher", seed=0)
    tiny_llama(made / "student", layers=1, seed=1)
    (made / "corpus").mkdir()
    numbered = [f"{n}. {sentence}" for n in range(3) for sentence in TEXT.splitlines()]
    write_documents(made / "corpus", train=numbered, heldout=TEXT.splitlines())
    return made


def train(folder: Path, name: str, *, killed_at: str = "never") -> int:
    arguments = [str(folder), str(folder / name), str(folder / f"{name}-scratch"), killed_at]
    root = Path(__file__).parent.parent.parent.parent
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", CHILD, *arguments], env=env, capture_output=True).returncode


def test_a_killed_process_started_again_writes_the_same_weights(folder):
    assert train(folder, "whole") == 0
    assert train(folder, "cut", killed_at="6") == -signal.SIGKILL
    assert not (folder / "cut" / "model.safetensors").exists()
    assert train(folder, "cut") == 0
    assert (folder / "cut" / "model.safetensors").read_bytes() == (folder / "whole" / "model.safetensors").read_bytes()
