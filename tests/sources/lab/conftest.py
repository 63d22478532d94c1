"""A quick lab: English that is made up, and a small sample for the tokenizer."""

import pytest

from tests.sources.lab.plain_english import plain_english


@pytest.fixture
def quick_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is as in earnest but for the English and the size of the tokenizer's sample."""
    prose = plain_english()
    monkeypatch.setattr("harness.sources.lab.text.english", lambda context: prose)
    monkeypatch.setattr("harness.sources.lab.reading.SAMPLE_CHARACTERS", 300_000)
