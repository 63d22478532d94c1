"""What a YAML number may look like, beyond what the matrices of the other tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import document
from harness.spec import Use


# The floats of YAML 1.2, https://yaml.org/spec/1.2.2/#1032-tag-resolution, beside what must stay a word or an integer.
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 0.0001),
        ("8.0e9", 8e9),
        ("-2E3", -2000.0),
        (".5e1", 5.0),
        ("3.5", 3.5),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2:4", "2:4"),
        ("12", 12),
        ("'1e-4'", "1e-4"),
    ],
)
def test_a_number_with_an_exponent_is_a_number(written: str, meant: float | str) -> None:
    read = document.read(f"{{use: any, args: {{value: {written}}}}}", Use, origin=Path("here.yaml"))
    assert read.args["value"] == meant
    assert type(read.args["value"]) is type(meant)
