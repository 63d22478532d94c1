"""A session whose speed is known because it sleeps."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.interfaces import Artifact, EvaluationContext, GenerateRequest, Token
from harness.record import ArtifactFacts, Identity
from harness.spec import Hardware

VOCABULARY, END, PREFIX = 1000, 0, 1


@dataclass
class Paced:
    """Sleeps before the first token and between steps; a batch goes in step unless `serial`. Remembers its prompts."""

    prefill_s: float = 0.0
    step_s: float = 0.0
    serial: bool = False
    max_length: int = 4096
    sleep: Callable[[float], None] = time.sleep
    prompts: list[tuple[int, ...]] = field(default_factory=list)

    vocabulary_size = VOCABULARY
    prefix_token = PREFIX
    end_tokens = frozenset({END})
    identity = Identity(
        weights_digest="x",
        weights_disk_bytes=1_100,
        weights_memory_bytes=1_000,
        parameters=2_000,
        tensor_types={"q4": 2_000},
        kernel="none",
        tokenizer_hash="x",
    )

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        self.prompts += [tuple(request.prompt) for request in requests]
        groups = [[index] for index in range(len(requests))] if self.serial else [list(range(len(requests)))]
        for group in groups:
            self.sleep(self.prefill_s)
            for step in range(requests[0].max_tokens):
                self.sleep(self.step_s if step else 0.0)
                last = step == requests[0].max_tokens - 1
                yield from (Token(index, 7, "length" if last else None, "" if last else None) for index in group)


def context(tmp_path, *, seed: int = 0, load_s: float = 1.25) -> EvaluationContext:
    facts = ArtifactFacts(lineage=(), format="files", digest="", size_bytes=0)
    return EvaluationContext(
        artifacts={},
        artifact=Artifact(tmp_path, facts),
        hardware=Hardware(),
        seed=seed,
        load_s=load_s,
        scratch=tmp_path,
        progress=lambda fraction, message: None,
    )
