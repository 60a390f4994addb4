"""Cases that should cost as much as similar ones: seconds of a later measurement, and the ratio to the similar case.

    python timings/cliffs.py [--cases zero-head,tokens,centred,large-images,samples] [--threads 2] [--repeats 3]

Each pair runs in one process, alternating; the time is the minimum over several calls after a first one. `tokens` needs
the package transformers; `large-images` compares with torch.func in chunks of four samples, and takes minutes.
"""

import argparse
import itertools
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torchvision.models import VisionTransformer

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.regimes import CentredScaled

Call = Callable[[], object]


def mlp() -> nn.Sequential:
    """3072-256-256-10."""
    sizes = (3072, 256, 256, 10)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def zero_head() -> Iterator[tuple[str, Call, str, Call]]:
    """Torchvision's ViT at initialisation, whose head starts at zero, and the same with an ordinary head."""

    def vit() -> VisionTransformer:
        torch.manual_seed(0)
        return VisionTransformer(32, 4, 6, 3, 192, 768, num_classes=10)

    zero, ordinary = vit(), vit()
    nn.init.normal_(ordinary.heads.head.weight, std=0.02)
    x = torch.randn(64, 3, 32, 32)
    yield "ViT, zero head", lambda: empirical_ntk(zero, x), "ordinary head", lambda: empirical_ntk(ordinary, x)


def tokens() -> Iterator[tuple[str, Call, str, Call]]:
    """Small language models with a classifier, for numbers of tokens with many and with few divisors."""
    import transformers as t

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    wide = size | {"intermediate_size": 64, "num_labels": 3, "pad_token_id": 0}
    small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "num_labels": 3, "pad_token_id": 0}
    makers = {
        "BERT": lambda: t.BertForSequenceClassification(t.BertConfig(**wide)),
        "GPT-2": lambda: t.GPT2ForSequenceClassification(t.GPT2Config(**small)),
        "LLaMA": lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**wide)),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        model = make().eval()
        generator = torch.Generator().manual_seed(0)
        calls = {}
        for n in (10, 6, 11, 12, 32):
            ids = torch.randint(1, 50, (12, n), generator=generator)
            calls[n] = lambda ids=ids, m=model: empirical_ntk(m, {"input_ids": ids}, output_selector=lambda y: y.logits)
        for n in (6, 11, 12, 32):
            yield f"{name}, {n} tokens", calls[n], "10 tokens", calls[10]


def centred() -> Iterator[tuple[str, Call, str, Call]]:
    """A network centred at its initialisation, slightly moved, and the network itself."""
    torch.manual_seed(0)
    plain, x = mlp(), torch.randn(64, 3072)
    model = CentredScaled(mlp(), alpha=100.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-7 * torch.randn_like(p))
    yield "CentredScaled, moved by 1e-7", lambda: empirical_ntk(model, x), "plain", lambda: empirical_ntk(plain, x)


def by_torch_func(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Trace kernel from per-sample Jacobians in chunks of four samples."""
    params = {k: p.detach() for k, p in model.named_parameters()}

    def f(theta, sample):
        return functional_call(model, theta, sample[None])[0]

    rows = []
    for part in x.split(4):
        j = vmap(jacrev(f), (None, 0))(params, part)
        rows.append(torch.cat([g.flatten(2) for g in j.values()], 2).flatten(1))
    j = torch.cat(rows)
    return j @ j.T


def large_images() -> Iterator[tuple[str, Call, str, Call]]:
    """Few weights, many pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    x = torch.randn(24, 3, 512, 512)
    for told, budget in (("default budget", None), ("256 MiB", 2**28)):
        yield (
            f"24 images of 512x512, {told}",
            lambda budget=budget: empirical_ntk(model, x, memory_budget=budget),
            "torch.func in chunks of 4",
            lambda: by_torch_func(model, x),
        )


def samples() -> Iterator[tuple[str, Call, str, Call]]:
    """Twice as many samples: four times as many entries."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    x = torch.randn(2048, 3, 32, 32)
    for n in (512, 1024, 2048):
        yield (
            f"small CNN, N = {n}",
            lambda n=n: empirical_ntk(model, x[:n]),
            f"N = {n // 2}",
            lambda n=n: empirical_ntk(model, x[: n // 2]),
        )


CASES = {
    "zero-head": zero_head,
    "tokens": tokens,
    "centred": centred,
    "large-images": large_images,
    "samples": samples,
}


def seconds(call: Call, repeats: int) -> float:
    """Return the minimum time of several calls after one that plans; fewer for long calls."""
    best = float("inf")
    for k in range(repeats + 1):
        begin = time.perf_counter()
        call()
        spent = time.perf_counter() - begin
        best = min(best, spent) if k else best
        if spent > 20:
            return min(best, spent)
    return best


def main() -> None:
    """Print one line per pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    print(f"{name}, {arguments.threads} threads, torch {torch.__version__}")
    known: dict[str, float] = {}
    for case in arguments.cases.split(","):
        for left, call, right, neighbour in CASES[case]():
            a = seconds(call, arguments.repeats)
            key = f"{case} {right} {left.split(',')[0]}"
            known.setdefault(key, seconds(neighbour, arguments.repeats))
            print(f"{left:36} {a:9.4f} s   {right:26} {known[key]:9.4f} s   ratio {a / known[key]:7.2f}", flush=True)


if __name__ == "__main__":
    main()
