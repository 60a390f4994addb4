"""Full float32 precision in matrix products and convolutions, regardless of the user's settings.

torch has two interfaces to the same setting. The older one (`set_float32_matmul_precision`, `cudnn.allow_tf32`) writes
into the newer one (`torch.backends.….fp32_precision`, since 2.9), and reading it raises after the newer one was set
differently. So both are read, set to full precision, and restored separately.

cuDNN's search for its fastest algorithm is switched off too: for each block size it takes as long as many measurements,
and it may choose another algorithm, with other rounding, the next time.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

# An entry that is "none" takes the value of "all" of its backend, and that the one of "generic".
_KEYS = (
    ("generic", "all"),
    *((backend, "all") for backend in ("cuda", "mkldnn")),
    *((backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")),
)


@contextmanager
def full_precision() -> Generator[None, None, None]:
    """Disable TF32 and bfloat16 in float32 products of all backends; restore both interfaces on exit."""
    searches = torch._C._get_cudnn_benchmark()
    get = getattr(torch._C, "_get_fp32_precision_getter", None)
    put = getattr(torch._C, "_set_fp32_precision_setter", None)
    held: dict[tuple[str, str], str] = {}
    if get is not None and put is not None:
        for key in _KEYS:  # with "none" above it, each entry shows its own value
            held[key] = get(*key)
            put(*key, "none")
    matmul = torch.get_float32_matmul_precision()
    convolution = _cudnn_allows_tf32(put)
    torch.set_float32_matmul_precision("highest")
    torch._C._set_cudnn_allow_tf32(False)
    torch._C._set_cudnn_benchmark(False)
    if put is not None:
        for key in held:
            put(*key, "ieee")
    try:
        yield
    finally:
        torch._C._set_cudnn_benchmark(searches)
        torch.set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(convolution)
        if put is not None:
            for key, value in held.items():
                put(*key, value)


def _cudnn_allows_tf32(put: object) -> bool:
    """Return the older flag for cuDNN, which can be read only if the newer one agrees."""
    if callable(put):
        put("cuda", "conv", "tf32")
        put("cuda", "rnn", "tf32")
    try:
        return bool(torch._C._get_cudnn_allow_tf32())
    except RuntimeError:
        return False
