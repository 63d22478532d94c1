"""Stopping, with bytes as tokens: what a token decodes to is then known without a tokenizer."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from harness.interfaces import GenerateRequest
from harness.runtimes.stopping import TextWatcher

END = 0


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def feed(text: bytes, request: GenerateRequest) -> tuple[TextWatcher, int]:
    """Feeds bytes until the request ends; gives the watcher and how many were taken."""
    watcher = TextWatcher(decode, {END}, request)
    for taken, token in enumerate(text, start=1):
        if watcher.feed(token):
            return watcher, taken
    return watcher, len(text)


def test_a_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    watcher, taken = feed(b"one\n\ntwo", GenerateRequest([1], 99, stop=("\n\n",)))
    assert (watcher.finish, watcher.text, taken) == ("stop", "one", 5)


def test_the_text_is_cut_at_the_earliest_of_the_stop_strings_that_one_token_completed() -> None:
    watcher, _ = feed(b"abcd", GenerateRequest([1], 99, stop=("d", "bcd")))
    assert watcher.text == "a"


def test_an_end_token_is_not_part_of_the_text() -> None:
    watcher, taken = feed(b"ab\x00c", GenerateRequest([1], 99))
    assert (watcher.finish, watcher.text, taken) == ("eos", "ab", 3)


def test_ignoring_the_end_gives_exactly_the_tokens_asked_for() -> None:
    watcher, taken = feed(b"a\x00b.c", GenerateRequest([1], 5, stop=(".",), ignore_eos=True))
    assert (watcher.finish, watcher.text, taken) == ("length", "a\x00b.c", 5)


def test_a_stop_string_of_characters_that_are_several_tokens_is_found() -> None:
    watcher, taken = feed("aé→b".encode(), GenerateRequest([1], 99, stop=("é→",)))
    assert (watcher.finish, watcher.text, taken) == ("stop", "a", 6)


@given(
    text=st.text("ab\né", max_size=60),
    stop=st.lists(st.text("ab\né", min_size=1, max_size=6), min_size=1, max_size=3),
    limit=st.integers(1, 60),
)
def test_looking_at_the_last_tokens_finds_what_looking_at_everything_finds(
    text: str, stop: list[str], limit: int
) -> None:
    request = GenerateRequest([1], limit, stop=tuple(stop))
    watcher, taken = feed(text.encode(), request)
    for length in range(1, min(limit, len(text.encode())) + 1):  # the slow way: decode everything after every token
        seen = decode(text.encode()[:length])
        if any(one in seen for one in stop):
            cut = min(seen.index(one) for one in stop if one in seen)
            assert (taken, watcher.finish, watcher.text) == (length, "stop", seen[:cut])
            return
    assert watcher.finish == ("length" if limit <= len(text.encode()) else None)
