"""Numbers and tables as people read them: as many digits as the interval supports, a dash where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.record import Interval, Metric
from harness.statistics.paired import Estimate

NOTHING = "–"


def with_interval(value: float, interval: Interval | None) -> str:
    """Gives `0.97 [0.93, 1.01]`; more digits for a narrow interval, and never so few that 1 seems to move inside.

    >>> with_interval(0.97, Interval(low=0.93, high=0.998, method="m"))
    '0.970 [0.930, 0.998]'
    """
    if interval is None:
        return f"{value:.2f}"
    width = interval.high - interval.low
    digits = 2 if width >= 0.05 else 3 if width >= 0.005 else 4
    while digits < 5 and any((round(end, digits) == 1) != (end == 1) for end in (interval.low, interval.high)):
        digits += 1
    return f"{value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def estimate(found: Estimate | None) -> str:
    """Gives an estimate with its interval."""
    return NOTHING if found is None or found.value is None else with_interval(found.value, found.interval)


def times(value: float | None) -> str:
    """Gives a factor, `1.84×`."""
    return NOTHING if value is None else f"{value:.2f}×"


def number(value: float | None, *, digits: int = 3) -> str:
    """Gives a number with so many significant digits, never in powers of ten between 0.0001 and a million.

    >>> number(0.01234), number(1234.6), number(0.5), number(98765.4)
    ('0.0123', '1235', '0.5', '98765')
    """
    if value is None:
        return NOTHING
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def megabytes(count: float | None) -> str:
    """Gives bytes as MB (10^6)."""
    return NOTHING if count is None else f"{count / 1e6:.1f}" if count < 1e9 else f"{count / 1e6:.0f}"


def seconds(value: float | None) -> str:
    """Gives a duration in the unit that suits it.

    >>> seconds(0.0312), seconds(4.25), seconds(75), seconds(5400)
    ('31 ms', '4.2 s', '75 s', '1 h 30 min')
    """
    if value is None:
        return NOTHING
    if value == 0:
        return "0 s"
    if value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.2g} ms"
    if value < 600:
        return f"{value:.1f} s" if value < 60 else f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def metric(found: Metric | None) -> str:
    """Gives a metric's value with as many digits as three can tell."""
    return NOTHING if found is None else number(found.value)


def count(value: int, what: str) -> str:
    """Gives `1 item` or `1,200 items`.

    >>> count(1, "item"), count(1200, "item")
    ('1 item', '1,200 items')
    """
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def listed(parts: Sequence[str], *, most: int = 8) -> str:
    """Joins with commas and says how many more there are."""
    shown = ", ".join(parts[:most])
    return shown if len(parts) <= most else f"{shown} and {len(parts) - most} more"


def plain(text: str) -> str:
    r"""Makes any text safe inside a Markdown cell or sentence: one line, no markup of its own.

    >>> print(plain("a|b <c> *d* [e](f)"))
    a\|b &lt;c&gt; \*d\* \[e](f)
    """
    flat = " ".join(text.split())
    for mark, written in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("*", "\\*"),
        ("[", "\\["),
        ("`", "'"),
        ("<", "&lt;"),
        (">", "&gt;"),
    ):
        flat = flat.replace(mark, written)
    return flat


def table(rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> str:
    """Gives a Markdown table with the columns of the first row; those in `left` are words, the others numbers."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    sides = tuple("left" if name in left else "right" for name in frame.columns)
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=sides))
