"""Means and their intervals, formatted as plain text and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MISSING = "–"
_ESCAPES = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "–": "--", "→": r"$\to$", "±": r"$\pm$",
}  # fmt: skip
_LETTERS: Mapping[str, str] = {"λ_max": r"$\lambda_{\max}$", "α": r"$\alpha$", "λ": r"$\lambda$", "σ": r"$\sigma$"}


def parts(mean: float, half: float | None = None) -> tuple[str, str | None, int]:
    """Return the digits of a mean and of its interval's half-width, and their common power of ten.

    The half-width has two significant digits and the mean as many decimals; a mean alone has three significant digits.

    Args:
        mean: The mean, finite.
        half: Half of its interval's length; None or NaN without an interval.

    Returns:
        Two texts and an exponent: 0 for numbers written without one.

    >>> parts(0.000409, 0.000052), parts(0.2, 1.271), parts(12345.6), parts(0.00409)
    (('4.09', '0.52', -4), ('0.2', '1.3', 0), ('12300', None, 0), ('0.00409', None, 0))
    """
    half = None if half is None or math.isnan(half) else half
    largest = max(abs(mean), half or 0.0)
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    power = 0 if -4 < power < 5 else power
    scale = 10.0**power
    told, spread = mean / scale, None if half is None else half / scale
    own = math.floor(math.log10(abs(told))) if told else None
    # An interval that is only rounding error of equal numbers must not add digits: show at most five of the mean.
    if spread:
        first = math.floor(math.log10(spread))
        first = first if own is None else max(first, own - 3)
    else:
        first = 1 if own is None else own - 1
    decimals = 1 - first
    return _digits(told, decimals), None if spread is None else _digits(spread, decimals), power


def _digits(value: float, decimals: int) -> str:
    text = f"{round(value, decimals):.{max(0, decimals)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def written(mean: float, half: float | None = None) -> str:
    """Return a mean with half of its interval as plain text.

    >>> written(0.000409, 0.000052), written(0.2, 1.271), written(4.09e-4), written(float("nan"))
    ('(4.09 ± 0.52)e-04', '0.2 ± 1.3', '4.09e-04', '–')
    """
    if math.isnan(mean):
        return MISSING
    digits, spread, power = parts(mean, half)
    tail = f"e{power:+03d}" if power else ""
    if spread is None:
        return digits + tail
    return f"({digits} ± {spread}){tail}" if tail else f"{digits} ± {spread}"


def latex(mean: float, half: float | None = None) -> str:
    r"""Return a mean with half of its interval as LaTeX.

    >>> print(latex(0.000409, 0.000052), latex(4.09e-4), latex(0.2, 1.271), latex(float("nan")))
    $(4.09 \pm 0.52) \times 10^{-4}$ $4.09 \times 10^{-4}$ $0.2 \pm 1.3$ --
    """
    if math.isnan(mean):
        return "--"
    digits, spread, power = parts(mean, half)
    tail = rf" \times 10^{{{power}}}" if power else ""
    inner = digits if spread is None else rf"{digits} \pm {spread}"
    return f"$({inner}){tail}$" if tail and spread is not None else f"${inner}{tail}$"


def latex_text(text: str) -> str:
    r"""Return plain text escaped for LaTeX, with Greek letters as formulas.

    >>> print(latex_text("λ_max dip"), latex_text("lr=0.1 & 50%"))
    $\lambda_{\max}$ dip lr=0.1 \& 50\%
    """
    for word, formula in _LETTERS.items():
        before, found, after = text.partition(word)
        if found:
            return latex_text(before) + formula + latex_text(after)
    return "".join(_ESCAPES.get(character, character) for character in text)


def markdown_row(cells: Sequence[str]) -> str:
    r"""Return a row of a Markdown table.

    >>> print(markdown_row(["a", "|b|"]))
    | a | \|b\| |
    """
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
