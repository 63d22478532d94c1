"""Small stand-ins for the artifacts that our tasks read, made by rule, and a context to observe in."""

import json
from pathlib import Path

from harness.evaluations.tasks.offline import functions, geography
from harness.interfaces import Artifact, EvaluationContext
from harness.record import ArtifactFacts
from harness.spec import Hardware

SENTENCE = (
    "A model that was compressed number {n} should still know what the larger model knew before it became small,"
    " because the answer to question {n} is measured by the likelihood of the held out text and by the share of"
    " questions that the compressed model answered exactly as the larger model did before the larger model was"
    " compressed by method {n} at last."
)


def artifact(path: Path, form: str = "files") -> Artifact:
    return Artifact(path, ArtifactFacts(lineage=(), format=form, digest="0" * 16, size_bytes=1))


def corpus(folder: Path, documents: int = 12) -> Artifact:
    """A corpus whose held-out documents are prose, each several sentences long."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = ["\n\n".join(SENTENCE.format(n=n + k) for k in range(4)) for n in range(0, 4 * documents, 4)]
    (folder / "train.txt").write_text("nothing to see", encoding="utf-8")
    (folder / "heldout.txt").write_text("\f".join(texts), encoding="utf-8")
    return artifact(folder, "text")


def geonames(folder: Path) -> Artifact:
    """Sixteen countries in a ring on two continents: each borders the next one on its continent."""
    countries = {
        f"{continent[0]}{n}": {
            "name": f"{continent}land{n}",
            "capital": f"City{continent[0]}{n}",
            "continentcode": continent[:2].upper(),
            "currencyname": f"Coin{n % 4}",
            "population": 5_000_000 if n < 8 else 100,
            "neighbours": f"{continent[0]}{(n + 1) % 8}",
        }
        for continent in ("East", "West")
        for n in range(9)
    }
    names = {code: {"name": f"The {code}"} for code in ("EA", "WE", "NO", "SO", "AN")}
    for member, content in zip(geography.MEMBERS, (countries, names), strict=True):
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_text(json.dumps(content), encoding="utf-8")
    return artifact(folder)


def bfcl(folder: Path, count: int = 12) -> Artifact:
    """Requests with two or three functions; the right one is named after the request's number."""
    asked, answered = [], []
    for n in range(count):
        names = [f"get_{n}", f"set_{n}", "unused"][: 2 + n % 2]
        asked.append(
            {
                "id": f"multiple_{n}",
                "question": [[{"role": "user", "content": f"Please get number {n}. "}]],
                "function": [{"name": name, "description": "Does it."} for name in names],
            }
        )
        answered.append({"id": f"multiple_{n}", "ground_truth": [{f"get_{n}": {}}]})
    for member, lines in zip(functions.MEMBERS, (asked, answered), strict=True):
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return artifact(folder)


def artifacts(folder: Path) -> dict[str, Artifact]:
    return {
        "corpus": corpus(folder / "corpus"),
        "geonames": geonames(folder / "geonames"),
        "bfcl": bfcl(folder / "bfcl"),
    }


def context(folder: Path, given: dict[str, Artifact], told: list[float] | None = None) -> EvaluationContext:
    heard = [] if told is None else told
    return EvaluationContext(
        artifacts=given,
        artifact=artifact(folder),
        hardware=Hardware(),
        seed=0,
        load_s=0.0,
        scratch=folder,
        progress=lambda fraction, _: heard.append(fraction or 0.0),
    )
