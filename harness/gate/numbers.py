"""How a gate writes numbers: one form for each, wherever it stands.

A number has as many digits as its interval supports, and never so few that an end of the interval seems to lie on the
other side of what decides: of one, of zero, of the margin. A p-value is never `0.000`, nor rounded across what it was
held against. Shares are written without their leading zero, differences of scores as points (hundredths) with a sign.
What is absent is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from harness.gate.verdict import Counts, Number

NOTHING = "–"
MOST_DIGITS = 6
BARE = frozenset(("", "1", "fraction", "score"))
"""Units that are not written."""


def share(value: float | None, *, digits: int = 3) -> str:
    """Gives a share without the zero before its point.

    >>> share(0.9821), share(1.0042), share(-0.05, digits=2), share(-0.0001)
    ('.982', '1.004', '-.05', '.000')
    """
    if value is None:
        return NOTHING
    shown = _fixed(value, digits)
    return shown.replace("0.", ".", 1) if abs(value) < 1 and not shown.lstrip("-").startswith("1") else shown


def kept(found: Number | None, *, margin: float | None = None) -> str:
    """Gives a retention with its interval; `margin` is the tolerated loss, which rounding must not cross.

    >>> kept(Number(value=0.982, interval=Interval(low=0.969, high=0.995, method="m")))
    '.982 [.969, .995]'
    """
    if found is None or found.value is None:
        return NOTHING
    digits = _digits(found, least=2, decides=[1.0] if margin is None else [1.0, 1 - margin])
    return _written(found, lambda value: share(value, digits=digits))


def points(found: Number | None, *, margin: float | None = None) -> str:
    """Gives a difference of scores, candidate less baseline, in signed points.

    >>> points(Number(value=-0.018, interval=Interval(low=-0.031, high=-0.004, method="m")))
    '-1.8 [-3.1, -0.4]'
    """
    if found is None or found.value is None:
        return NOTHING
    digits = _point_digits(found, margin)
    return _written(found, lambda value: _signed(100 * value, digits))


def lost(found: Number | None, *, margin: float | None = None) -> str:
    """Says in words what a difference (candidate less baseline) means; the interval is that of what the words say.

    >>> lost(Number(value=-0.018, interval=Interval(low=-0.031, high=-0.004, method="m")))
    'lost 1.8 points [0.4, 3.1]'
    """
    if found is None or found.value is None:
        return ""
    gains, digits = found.value > 0, _point_digits(found, margin)
    sign = 100 if gains else -100
    told = _written(found, lambda value: _fixed(sign * value, digits), unit=" points", swapped=not gains)
    return f"{'gained' if gains else 'lost'} {told}"


def times(found: Number | None, *, margin: float | None = None) -> str:
    """Gives a ratio to the baseline with its interval.

    >>> times(Number(value=1.84, interval=Interval(low=1.71, high=1.98, method="m")))
    '1.84× [1.71, 1.98]'
    """
    if found is None or found.value is None:
        return NOTHING
    decides = [1.0] if margin is None else [1.0, 1 - margin, 1 + margin]
    digits = _digits(found, least=2, decides=decides)
    return _written(found, lambda value: _fixed(value, digits), unit="×")


def p_value(p: float | None, *, against: float | None = None) -> str:
    """Gives `p = .034`, with more digits where two would move it across what it is held against.

    >>> p_value(0.0342), p_value(3.14e-7), p_value(0.0503, against=0.05), p_value(1e-300)
    ('p = .034', 'p = 3.1e-7', 'p = .0503', 'p < 1e-15')
    """
    if p is None:
        return ""
    if p < 1e-15:
        return "p < 1e-15"
    if p > 0.99:
        return "p > .99"
    digits = 2
    while against is not None and digits < MOST_DIGITS and _crosses(p, float(f"{p:.{digits - 1}e}"), against):
        digits += 1
    return f"p = {small(p, digits=digits)}"


def small(value: float, *, digits: int = 2) -> str:
    """Gives a probability with so many significant digits.

    >>> small(0.05), small(0.001), small(0.00003)
    ('.05', '.001', '3e-5')
    """
    if value >= 1e-4:
        decimals = digits - 1 - math.floor(math.log10(value))
        shown = share(value, digits=decimals)
        return shown.rstrip("0") if value == round(value, decimals - 1) else shown
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"


def flips(counts: Counts | None) -> str:
    """Gives `won 12, lost 31 of 1,319`; nothing for items that are not right or wrong.

    >>> flips(Counts(n=1319, won=12, lost=31))
    'won 12, lost 31 of 1,319'
    """
    if counts is None or counts.won is None or counts.lost is None:
        return ""
    return f"won {counts.won:,}, lost {counts.lost:,} of {counts.n:,}"


def more_items(count: int | None) -> str:
    """Gives `needs 1,240 more items`, or nothing."""
    return "" if count is None else f"needs {count:,} more item{'' if count == 1 else 's'}"


def percent(value: float) -> str:
    """Gives a share as `0.5 %`."""
    return f"{100 * value:.4g} %"


def number(value: float | None) -> str:
    """Gives a number with three significant digits, in powers of ten only where it would be long.

    >>> number(0.01234), number(1234.6), number(51.37), number(2e-7)
    ('0.0123', '1,235', '51.4', '2.00e-07')
    """
    if value is None:
        return NOTHING
    if value and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float | None) -> str:
    """Gives bytes in powers of a thousand.

    >>> size(1.35e8), size(2_500_000_000), size(512)
    ('135.0 MB', '2.50 GB', '512 bytes')
    """
    if count is None:
        return NOTHING
    if count < 1e3:
        return f"{count:.0f} bytes"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def measured(value: float | None, unit: str) -> str:
    """Gives a number with its unit: scores as shares, bytes by their size.

    >>> measured(0.612, "score"), measured(0.0371, "nats"), measured(512, "bytes")
    ('.612', '0.0371 nats', '512 bytes')
    """
    if value is None:
        return NOTHING
    if unit == "score":
        return share(value)
    if unit == "bytes":
        return size(value)
    return number(value) if unit in BARE else f"{number(value)} {unit}"


def in_unit(found: Number, unit: str, *, limit: float | None = None) -> str:
    """Gives a number with its interval in its own unit; `limit` is what rounding must not cross.

    >>> in_unit(Number(value=0.0371, interval=Interval(low=0.0332, high=0.0413, method="m")), "nats")
    '0.0371 [0.0332, 0.0413] nats'
    """
    if found.value is None or found.interval is None:
        return measured(found.value, unit)
    digits, ends = 3, (found.interval.low, found.interval.high)
    while (
        limit is not None
        and digits < MOST_DIGITS
        and any(_crosses(end, float(f"{end:.{digits}g}"), limit) for end in ends)
    ):
        digits += 1
    told = _written(found, lambda value: f"{value:.{digits}g}")
    return told if unit in BARE else f"{told} {unit}"


def headed(name: str, found: Iterable[Number | None]) -> str:
    """Gives the head of a column of numbers: with the level of their intervals where there are any and it is one."""
    levels = {one.interval.level for one in found if one is not None and one.interval is not None}
    if not levels:
        return name
    return f"{name} [{percent(levels.pop())}]" if len(levels) == 1 else f"{name} [interval]"


def _fixed(value: float, digits: int) -> str:
    shown = f"{value:.{digits}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown


def _signed(value: float, digits: int) -> str:
    shown = _fixed(value, digits)
    return shown if shown.startswith("-") or float(shown) == 0 else f"+{shown}"


def _written(found: Number, write: Callable[[float], str], *, unit: str = "", swapped: bool = False) -> str:
    assert found.value is not None
    ends = _ends(found)
    if ends is None:
        return f"{write(found.value)}{unit}"
    low, high = reversed(ends) if swapped else ends
    return f"{write(found.value)}{unit} [{write(low)}, {write(high)}]"


def _ends(found: Number) -> tuple[float, float] | None:
    return None if found.interval is None else (found.interval.low, found.interval.high)


def _crosses(value: float, shown: float, border: float) -> bool:
    return (value < border) != (shown < border) or (value > border) != (shown > border)


def _side(value: float, of: float) -> int:
    near = round(value - of, 9)
    return (near > 0) - (near < 0)


def _digits(found: Number, *, least: int, decides: Sequence[float]) -> int:
    """Gives the digits that an interval supports, and more where rounding would move an end past what decides."""
    ends = _ends(found)
    if ends is None:
        return max(least, 3)
    width = ends[1] - ends[0]
    digits = max(least, 2 if width >= 0.05 else 3 if width >= 0.005 else 4)
    borders = [round(border, 9) for border in decides]
    while digits < MOST_DIGITS and any(
        _side(round(end, digits), border) != _side(end, border) for end in ends for border in borders
    ):
        digits += 1
    return digits


def _point_digits(found: Number, margin: float | None) -> int:
    return _digits(found, least=3, decides=[0.0] if margin is None else [0.0, margin, -margin]) - 2
