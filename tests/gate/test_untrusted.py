import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.gate.untrusted import GONE, block, fence, markdown, one_line, paragraph, quiet
from tests.gate.decisions import NASTY, texts

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@given(st.text() | texts)
def test_a_line_is_one_line_without_what_cannot_be_seen(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= 120
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", shown)
    # Whatever XML 1.0 forbids is gone: the parser is the judge.
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert ElementTree.fromstring(f"<a>{escaped}</a>").text == (shown or None)


def test_emoji_and_other_scripts_stay_as_they_are() -> None:
    assert one_line("👩‍👩‍👧 日本語 عربى") == "👩‍👩‍👧 日本語 عربى"


def test_what_turns_the_direction_of_writing_is_shown_as_a_mark() -> None:
    assert one_line("a\u202eb") == f"a{GONE}b"


def test_long_text_ends_in_an_ellipsis() -> None:
    assert one_line("x" * 500, most=10) == "x" * 9 + "…"


@given(st.text() | texts)
def test_escaped_text_means_nothing_to_markdown(text: str) -> None:
    tokens = READER.parse(f"before {markdown(text, most=10_000)} after")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children or ()} <= {"text", "text_special"}


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_escaped_ascii_is_read_as_it_was_written(text: str) -> None:
    # What a reader sees is the text, but for a mention, which is parted by a space of no width.
    tokens = READER.parseInline(f"x{markdown(text, most=10_000)}x")
    seen = "".join(child.content for child in tokens[0].children or ())
    assert seen.replace("\u200b", "") == f"x{' '.join(text.split())}x"


@given(st.text() | texts | st.sampled_from(["-", "+ a", "= b", "# c", "> d", "12) e", "[f]: g", "| h |", "~~~"]))
def test_a_sentence_opens_no_list_heading_quote_or_definition(text: str) -> None:
    tokens = READER.parse(f"- {paragraph(text)}")
    assert [token.type for token in tokens if token.level > 1] in (
        [],
        ["paragraph_open", "inline", "paragraph_close"],
    )


@given(st.text() | texts | st.text(alphabet="`~\n x"))
def test_nothing_inside_closes_a_fence(text: str) -> None:
    tokens = READER.parse(f"{fence(text)}\n\nafter\n")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert tokens[0].content == block(text) + "\n"


def test_an_output_that_was_cut_says_so() -> None:
    assert block("a" * 1000, most=400).endswith("\n… (cut: 400 of 1,000 characters)")
    assert block("a" * 400, most=400) == "a" * 400


@pytest.mark.parametrize("text", NASTY)
def test_no_line_of_a_block_is_a_command_to_a_runner(text: str) -> None:
    # The runner trims a line and takes it for a command when it starts with two colons.
    assert not [line for line in block(text).splitlines() if line.strip().startswith("::")]
    assert "##[" not in quiet("##[add-mask]x")


def test_a_name_calls_nobody() -> None:
    assert "@\u200bsomeone" in markdown("thanks @someone")
