"""Numbers as text and as LaTeX."""

import doctest
import math

import pytest

from avalanche_ntk import numerals
from avalanche_ntk.numerals import latex, latex_text, written


def test_the_examples_hold():
    assert doctest.testmod(numerals).failed == 0


@pytest.mark.parametrize(
    ("mean", "half", "text", "tex"),
    [
        (0.0, 0.0, "0 ± 0", r"$0 \pm 0$"),
        (0.0, None, "0", "$0$"),
        (-0.000012, 0.0000034, "(-1.20 ± 0.34)e-05", r"$(-1.20 \pm 0.34) \times 10^{-5}$"),
        (2.0e7, 1.0e6, "(2.00 ± 0.10)e+07", r"$(2.00 \pm 0.10) \times 10^{7}$"),
        (-0.001, 0.5, "0.00 ± 0.50", r"$0.00 \pm 0.50$"),
        (9.996, None, "10.00", "$10.00$"),
        (0.5, math.nan, "0.500", "$0.500$"),
        (0.3, 1e-17, "0.30000 ± 0.00000", r"$0.30000 \pm 0.00000$"),
        (1234.0, 56.0, "1234 ± 56", r"$1234 \pm 56$"),
        (1234.0, 560.0, "1230 ± 560", r"$1230 \pm 560$"),
        (math.nan, math.nan, "–", "--"),
    ],
)
def test_mean_and_interval(mean, half, text, tex):
    assert written(mean, half) == text
    assert latex(mean, half) == tex


def test_foreign_text_is_no_latex():
    assert latex_text("a_b & 5% #1 ~ ^ {x} \\y $z$") == (
        r"a\_b \& 5\% \#1 \textasciitilde{} \textasciicircum{} \{x\} \textbackslash{}y \$z\$"
    )
