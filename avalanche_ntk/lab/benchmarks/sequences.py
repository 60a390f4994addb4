"""Generated token sequences: classes are Markov chains that differ only in the order of tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avalanche_ntk.errors import ArgumentError, checked_seed


def markov_chains(n_classes: int = 10, *, vocabulary: int = 16, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return the transition matrices of the classes, `P_c = (1 − ε) Π_c + ε 11ᵀ/V`, with Π_c a random permutation.

    Each matrix is doubly stochastic, so a chain that starts uniformly has uniform tokens at every position in every
    class: a single token carries no information on the class, and a model must use their order. Given a token, two
    classes whose permutations differ there have next tokens at a total variation distance of `1 − ε`.

    Args:
        n_classes: Number of classes C.
        vocabulary: Number of different tokens V.
        noise: ε in [0, 1), the probability of drawing the next token uniformly.
        seed: Seed of the permutations; those of the first classes do not depend on the number of classes.

    Returns:
        Probabilities of token j after token i in class c, shape `(C, V, V)`, float64; no two classes are the same.

    Raises:
        ArgumentError: A number is out of range, or there are fewer permutations than classes.

    >>> markov_chains(1, vocabulary=2, noise=0.5, seed=0).sum(axis=1).tolist()
    [[1.0, 1.0]]
    """
    _at_least("n_classes", n_classes, 1)
    _at_least("vocabulary", vocabulary, 2)
    if not 0 <= noise < 1:
        raise ArgumentError(f"noise must lie in [0, 1), found {noise}. Use 0.1, for example.")
    most = 1
    for factor in range(2, vocabulary + 1):
        most = min(most * factor, n_classes)  # stop early: V! soon exceeds any number of classes
    if most < n_classes:
        raise ArgumentError(
            f"each class has its own permutation of the {vocabulary} tokens and there are {most}; found"
            f" n_classes={n_classes}. Use n_classes={most} or less, or a larger vocabulary."
        )
    generator = np.random.default_rng([checked_seed(seed), 0])
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < n_classes:
        chosen[tuple(generator.permutation(vocabulary).tolist())] = None
    chains = np.full((n_classes, vocabulary, vocabulary), noise / vocabulary)
    for c, successor in enumerate(chosen):
        chains[c, np.arange(vocabulary), successor] += 1 - noise
    return chains


def markov_sequences(
    n_classes: int = 10,
    *,
    per_class: int = 200,
    test_per_class: int = 50,
    length: int = 16,
    vocabulary: int = 16,
    noise: float = 0.1,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw sequences from the chains of `markov_chains`, as arguments of `LabelledData.from_tensors`.

    `load_data("markov", seed=…, …)` returns them as labelled data for any shift; a model for them is
    `build_model("rnn", input_shape=(length,), vocabulary=…, …)`.

    Args:
        n_classes: Number of classes C.
        per_class: Training sequences of each class.
        test_per_class: Test sequences of each class.
        length: Tokens in a sequence T.
        vocabulary: Number of different tokens V.
        noise: ε, the probability of drawing a token uniformly instead of from the class's permutation.
        seed: Seed of chains and sequences; a class's training sequences do not depend on the number of classes.

    Returns:
        Training tokens `(C · per_class, T)` and labels, test tokens `(C · test_per_class, T)` and labels; int64.

    Raises:
        ArgumentError: A number is out of range, or there are fewer permutations than classes.

    >>> x, y, x_test, y_test = markov_sequences(2, per_class=3, test_per_class=1, length=5)
    >>> tuple(x.shape), y.tolist(), tuple(x_test.shape), y_test.tolist()
    ((6, 5), [0, 0, 0, 1, 1, 1], (2, 5), [0, 1])
    """
    _at_least("per_class", per_class, 1)
    _at_least("test_per_class", test_per_class, 1)
    _at_least("length", length, 2)
    chains = markov_chains(n_classes, vocabulary=vocabulary, noise=noise, seed=seed)
    parts: list[Tensor] = []
    for number, n in ((1, per_class), (2, test_per_class)):
        drawn = [_draw(chain, n, length, np.random.default_rng([seed, number, c])) for c, chain in enumerate(chains)]
        labels = torch.arange(n_classes, device="cpu").repeat_interleave(n)
        parts += [torch.from_numpy(np.concatenate(drawn)), labels]
    x, y, x_test, y_test = parts
    return x, y, x_test, y_test


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(
            f"{name} must be an integer of at least {least}, found {value!r}. Give {name}={least} or more."
        )


def _draw(chain: np.ndarray, n: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Draw n sequences `(n, length)` of a chain that starts uniformly."""
    cumulative = chain.cumsum(axis=1)
    cumulative[:, -1] = 1.0  # avoid a gap by rounding
    tokens = np.empty((n, length), dtype=np.int64)
    tokens[:, 0] = generator.integers(len(chain), size=n)
    for t in range(1, length):
        tokens[:, t] = (generator.random((n, 1)) >= cumulative[tokens[:, t - 1]]).sum(axis=1)
    return tokens
