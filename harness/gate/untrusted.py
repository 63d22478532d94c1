"""Text that others wrote, made safe to show: names of tasks and cells, reasons, outputs of models.

Each place has its own danger. A Markdown table breaks at a bar, a report at a script tag, a terminal obeys escape
sequences, a reader is fooled by characters that turn the direction of writing (N. Boucher and R. Anderson, "Trojan
Source", arXiv 2111.00169), XML 1.0 forbids most control characters even escaped, and a GitHub log obeys every line
that starts with two colons. Nothing is shown longer than a stated length.
"""

from __future__ import annotations

import re

NAME = 120
"""Characters of a name that are shown."""
SENTENCE = 600
"""Characters of a reason or a remedy that are shown."""
OUTPUT = 400
"""Characters of a model's output that are shown."""
GONE = "\ufffd"
"""Stands for a character that is not shown."""

# Controls, soft hyphens, marks and overrides of direction, invisible operators, byte-order marks, tags, surrogates and
# what is no character. Joiners (U+200C, U+200D) stay: Persian, Hindi and many emoji are written with them.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MARKS = {
    "\\": "\\\\",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
    "`": "&#96;",
    "$": "&#36;",
    "*": "\\*",
    "~": "\\~",
    "#": "\\#",
}
_MARK = re.compile(r"[\\&<>|`$*~#]")
_INSIDE = (
    (re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])"), r"\\_"),
    (re.compile(r"\]\("), r"]\\("),
    (re.compile(r"\[(?=\^)"), r"\\["),
    # A name must not call anybody, nor lead anywhere.
    (re.compile(r"@(?=\w)"), "@\u200b"),
    (re.compile(r"://"), r":&#47;/"),
    (re.compile(r"(?i)\b(www)\."), r"\1&#46;"),
)
_START = re.compile(r"^(?:(?=[-+=\[])|(\d+)(?=[.)]))")


def one_line(text: str, *, most: int = NAME) -> str:
    """Gives text as one line of at most `most` characters without anything that cannot be seen."""
    return cut(_UNSHOWN.sub(GONE, " ".join(text.split())), most=most)


def cut(text: str, *, most: int) -> str:
    """Gives text, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def block(text: str, *, most: int = OUTPUT) -> str:
    """Gives text with its lines, at most `most` characters, and says in words what was cut."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    shown = _UNSHOWN.sub(GONE, lines)
    if len(shown) > most:
        shown = f"{shown[:most]}\n… (cut: {most} of {len(shown):,} characters)"
    # Code is full of colons; here lines are known, and only those that start with two are parted.
    return re.sub(r"(?m)^(\s*:)(?=:)", "\\1\u200b", shown).replace("##[", "##\u200b[")


def quiet(text: str) -> str:
    """Keeps a runner from taking a line for a command: colons that follow each other are parted by nothing visible.

    All of them, not only those at the start of a line: where a terminal breaks a line is not known here.
    """
    return re.sub(":(?=:)", ":\u200b", text).replace("##[", "##\u200b[")


def markdown(text: str, *, most: int = NAME) -> str:
    r"""Gives text for a cell or the inside of a sentence: one line that means nothing to Markdown, HTML or GitHub.

    >>> print(markdown("a|b <c> *d* [e](f) g_h _i_"))
    a&#124;b &lt;c&gt; \*d\* [e]\(f) g_h \_i\_
    """
    shown = _MARK.sub(lambda found: _MARKS[found.group()], one_line(text, most=most))
    for found, written in _INSIDE:
        shown = found.sub(written, shown)
    return shown


def paragraph(text: str, *, most: int = SENTENCE) -> str:
    r"""Gives text for the start of a line or a list's item, where a dash or a number would begin a list.

    >>> print(paragraph("- [x]: y"), paragraph("1. z"))
    \- [x]: y 1\. z
    """
    return _START.sub(lambda found: f"{found.group(1) or ''}\\", markdown(text, most=most))


def fence(text: str, *, most: int = OUTPUT) -> str:
    """Gives text as a fenced block that nothing inside can close."""
    shown = block(text, most=most)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    bars = "`" * max(3, longest + 1)
    return f"{bars}text\n{shown}\n{bars}"
