"""Formatting of numbers and foreign strings for reports."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence

MISSING = "–"
_LONGEST = 80


def number(value: object, digits: int = 3) -> str:
    """Return a number with some significant digits, or a dash if undefined.

    >>> number(0.12345), number(12345.0), number(1.5e-7), number(None), number(float("nan")), number(0.0)
    ('0.123', '12,345', '1.50e-07', '–', '–', '0')
    """
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING
    number = float(value)
    if math.isnan(number):
        return MISSING
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number == 0:
        return "0"
    size = math.floor(math.log10(abs(number)))
    if size >= digits:
        text = f"{number:,.0f}" if size < 9 else f"{number:.{digits - 1}e}"
    elif size >= -3:
        text = f"{number:.{max(0, digits - 1 - size)}f}"
    else:
        text = f"{number:.{digits - 1}e}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def share(value: object) -> str:
    """Return a number between 0 and 1 with three decimals, or a dash if undefined.

    >>> share(0.98765), share(None)
    ('0.988', '–')
    """
    found = number(value)
    return f"{value:.3f}".replace("-", "−") if found != MISSING and math.isfinite(float(value)) else found  # type: ignore[arg-type]


def iterations(value: object) -> str:
    """Return a count of iterations, possibly fractional after resampling, or a dash if undefined.

    >>> iterations(1200.0), iterations(7.5), iterations(None)
    ('1,200', '7.50', '–')
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
        return f"{value:,.0f}"
    return number(value)


def plain(text: object, longest: int = _LONGEST) -> str:
    r"""Return a string without control characters, in one line, shortened to a maximum length.

    >>> plain("a\nb\x07c"), plain("x" * 100, longest=5)
    ('a b?c', 'xxxx…')
    """
    line = " ".join(str(text).split())
    # Cc and Cf hold control and direction marks, which would rearrange the text around them; Cs cannot be encoded.
    line = "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def escaped(text: object, longest: int = 10**6) -> str:
    """Return a string escaped for HTML text and quoted attributes.

    >>> escaped('<script>"x"</script>')
    '&lt;script&gt;&quot;x&quot;&lt;/script&gt;'
    """
    return html.escape(plain(text, longest), quote=True)


def listed(items: Sequence[str], shown: int = 5) -> str:
    """Return the first items as a list in a sentence, and the number of others.

    >>> listed(["a", "b", "c"], shown=2), listed(["a", "b"])
    ('a, b and 1 more', 'a, b')
    """
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def span_of(values: Sequence[float], digits: int = 2) -> str:
    """Return the range of some numbers, or a single number if they look equal.

    >>> span_of([2.31, 6.6]), span_of([2.0, 2.0])
    ('between 2.3 and 6.6', '2.0')
    """
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"between {low} and {high}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun.

    >>> counted(1, "boundary", "boundaries"), counted(2, "run")
    ('1 boundary', '2 runs')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
