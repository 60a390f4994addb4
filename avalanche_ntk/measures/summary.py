"""All scalar measures of one kernel at once, for a trajectory, without warnings."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.measures._undefined import Undefined
from avalanche_ntk.measures.alignment import eigenvector_alignment, kernel_alignment
from avalanche_ntk.measures.norms import kernel_norm, kernel_trace
from avalanche_ntk.measures.similarity import kernel_distance, kernel_velocity
from avalanche_ntk.measures.spectrum import condition_number, effective_rank, spectral_norm
from avalanche_ntk.measures.view import KernelView, view_of


@dataclass(frozen=True)
class Summary:
    """The scalar measures of one kernel.

    Attributes:
        values: The defined measures, by name.
        reasons: The reasons of the others.
    """

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def summary(
    k: ArrayLike | KernelView,
    labels: ArrayLike | None = None,
    *,
    previous: ArrayLike | KernelView | None = None,
    start: ArrayLike | KernelView | None = None,
    init: ArrayLike | KernelView | None = None,
    elapsed: float | None = None,
    ranks: Sequence[int] = (1, 5, 20),
    only: Collection[str] | None = None,
) -> Summary:
    """Compute every scalar measure of a self-kernel that the arguments allow, with a single decomposition.

    Always: `kernel_norm`, `kernel_trace`, `spectral_norm`, `effective_rank`, `condition_number`. With labels:
    `alignment`, and `eigenvector_alignment_K` for each K of `ranks`. With a reference: `distance_previous`,
    `distance_experience_start`, `distance_init`, and the same with `_uncentred`. With `previous` and `elapsed`:
    `velocity`, `velocity_uncentred`.

    Args:
        k: Self-kernel `(N, N)`; pass a `KernelView` and keep it for the next call.
        labels: Class of each sample, shape `(N,)`; or numeric targets, floating-point numbers `(N,)` or `(N, K)`.
        previous: The kernel at the previous measurement.
        start: The kernel at the start of the experience.
        init: The kernel at initialisation.
        elapsed: Iterations since the previous measurement.
        ranks: Numbers of leading eigenvectors for `eigenvector_alignment`.
        only: Names of the measures to compute; None for all.

    Returns:
        A `Summary`: the numbers, and reasons instead of warnings for undefined ones.

    Raises:
        ArgumentError: As raised by the measures.

    >>> found = summary([[3.0, 0.0], [0.0, 4.0]], [0, 1])
    >>> found.values["kernel_norm"], found.reasons["alignment"]
    (5.0, 'the kernel has shape (2, 2): after centring at most one number is left, which has no direction')
    """
    view = view_of(k)
    found = Summary()

    def add(name: str, measure: Callable[..., float], *args: object, **kwargs: object) -> None:
        if only is not None and name not in only:
            return
        # The function below `nan_when_undefined` gives the same number, but raises the reason instead of warning.
        body: Any = measure
        try:
            found.values[name] = body.__wrapped__(*args, **kwargs)
        except Undefined as reason:
            found.reasons[name] = str(reason)
        except np.linalg.LinAlgError as error:
            found.reasons[name] = f"the decomposition failed: {error}"

    add("kernel_norm", kernel_norm, view)
    add("kernel_trace", kernel_trace, view)
    add("spectral_norm", spectral_norm, view)
    add("effective_rank", effective_rank, view)
    add("condition_number", condition_number, view)
    if labels is not None:
        add("alignment", kernel_alignment, view, labels)
        for rank in ranks:
            add(f"eigenvector_alignment_{rank}", eigenvector_alignment, view, labels, rank)
    references = {"previous": previous, "experience_start": start, "init": init}
    for name, reference in references.items():
        if reference is None:
            continue
        for suffix, centred in (("", True), ("_uncentred", False)):
            add(f"distance_{name}{suffix}", kernel_distance, reference, view, centred=centred)
    if previous is not None and elapsed is not None:
        for suffix, centred in (("", True), ("_uncentred", False)):
            add(f"velocity{suffix}", kernel_velocity, previous, view, elapsed, centred=centred)
    return found
