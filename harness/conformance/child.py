"""The child process of the suite: runs every check on one stage under the interpreter that a plan would choose for it.

Started as `python -m harness.conformance.child FOLDER`. Findings are written one by one, so that what was found remains
when a stage takes the process with it.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

from harness.conformance import suite
from harness.conformance.bench import Bench, make_world
from harness.conformance.reading import read_afresh
from harness.spec import Hardware, Use
from harness.worker import attempt, die_with_the_parent, progress_to_parent

FINDINGS, JOB = "findings.jsonl", "stage.json"


def main() -> None:
    """Runs the suite in the folder that is the only argument."""
    folder = Path(sys.argv[1])
    die_with_the_parent()
    use = Use.model_validate_json((folder / JOB).read_text(encoding="utf-8"))
    progress = progress_to_parent()
    progress(None, "make models")
    bench = Bench(use, make_world(folder / "world"), folder / "builds", read_afresh, progress, Hardware())
    for name in bench.stage.requirements:
        # What a library does to the process when it is imported is not the stage's doing.
        attempt(partial(importlib.import_module, name))
    with (folder / FINDINGS).open("w", encoding="utf-8") as file:
        for finding in suite.run(bench):
            file.write(finding.model_dump_json() + "\n")
            file.flush()


if __name__ == "__main__":
    main()
