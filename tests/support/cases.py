"""Models and inputs on which every way to compute a kernel has to agree with the slow oracle."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and what is asked of the kernel.

    `ways` are the forms that the report may name; `make` is called under a fixed seed.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    ways: frozenset[str] = frozenset({"gram", "ghost", "explicit", "dense", "lookup", "unused"})
    n: int = 4


def error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error against the oracle's float64."""
    return float((got.double() - want).norm() / want.norm())


GENERIC = frozenset({"gram", "ghost", "explicit", "dense", "lookup", "unused", "masked", "jacobian", "loop"})


class Fn(nn.Module):
    """A module from a function of (module, inputs…) and its submodules and parameters."""

    def __init__(self, fn: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(self, *args, **kwargs)


def rand(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def ints(high: int, *shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(high, (n, *shape))


def head(features: int, c: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, c))


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


def trained_bn(module: nn.Module) -> nn.Module:
    """Give norm layers statistics, scales and shifts that are not 0 and 1."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            for p in m.parameters():
                p.data = torch.randn_like(p) * 0.3 + 0.8
            if getattr(m, "running_mean", None) is not None:
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2.0)
    return module


def conv(layer: Callable[[], nn.Module], features: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer(), nn.Tanh(), head(features))


def norm(layer: Callable[[], nn.Module], channels: int, features: int, dims: int = 1) -> Callable[[], nn.Module]:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return lambda: trained_bn(nn.Sequential(kind(2, channels, 1), layer(), nn.Tanh(), head(features)))


def rnn(kind: type[nn.RNNBase], **kw: Any) -> Callable[[], nn.Module]:
    width = 4 * (2 if kw.get("bidirectional") else 1)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        y, _ = m.rnn(x if m.rnn.batch_first else x.transpose(0, 1))
        return m.out(y[:, -1] if m.rnn.batch_first else y[-1])

    return lambda: Fn(run, rnn=kind(3, 4, **kw), out=nn.Linear(width, 2))


def attention(batch_first: bool = True, mask: str | None = None, weights: bool = False) -> Callable[[], nn.Module]:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        t = x if batch_first else x.transpose(0, 1)
        kw: dict[str, Any] = {}
        if mask == "causal":
            kw["attn_mask"] = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
        if mask == "padding":
            pad = torch.zeros(x.shape[0], 5, dtype=torch.bool)
            pad[:, 3:] = True
            kw["key_padding_mask"] = pad
        y, _ = m.att(t, t, t, need_weights=weights, **kw)
        y = y if batch_first else y.transpose(0, 1)
        return m.out(y.flatten(1))

    return lambda: Fn(run, att=nn.MultiheadAttention(6, 2, batch_first=batch_first), out=nn.Linear(30, 2))


def cross_attention(**kw: Any) -> Callable[[], nn.Module]:
    def run(m: nn.Module, x: Tensor, key: Tensor, value: Tensor | None = None) -> Tensor:
        return m.out(m.att(x, key, key if value is None else value, need_weights=False)[0].flatten(1))

    return lambda: Fn(run, att=nn.MultiheadAttention(6, 2, batch_first=True, **kw), out=nn.Linear(18, 2))


SCALES = [[1.0, 2.0]] * 4  # differ within a weight: no common factor


def as_pairs(z: Tensor) -> Tensor:
    """Complex numbers `(N, …)` as twice as many real ones, one row a sample."""
    return torch.view_as_real(z).flatten(1)


def fourier(x: Tensor, w: Tensor) -> Tensor:
    """A layer of a Fourier neural operator."""
    return torch.fft.irfft(torch.einsum("bix,iox->box", torch.fft.rfft(x), torch.view_as_complex(w)), n=x.shape[-1])


def autocast_inside() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.b(m.a(x).relu()).to(x.dtype)

    return Fn(run, a=nn.Linear(4, 8), b=nn.Linear(8, 2))


def quietly(make: Callable[[], nn.Module]) -> nn.Module:
    """A module of layers without width, whose initialisation torch remarks on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make()


def old_weight_norm(module: nn.Module) -> nn.Module:
    """The weight norm by a hook that models of the last years still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


class Whole(nn.Module):
    """Takes its inputs as one argument, as Avalanche gives a minibatch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Embedding(5, 2)

    def forward(self, batch: Any, task_labels: Tensor | None = None) -> Tensor:
        u, ids = batch.values() if isinstance(batch, dict) else batch
        y = self.a(u) * self.b(ids)
        return y if task_labels is None else y * task_labels[:, None]


class Pair(Whole):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(pair)


class NTKLinear(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias = par(o, i), par(o)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight.shape[1] ** -0.5, 0.1 * self.bias)


class LoRA(nn.Module):
    def __init__(self, i: int, o: int, r: int = 2, freeze: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(i, o)
        self.base.weight.requires_grad_(not freeze)
        self.a, self.b = par(r, i), par(o, r)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class Tied(nn.Module):
    """A language model whose output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.body = nn.Linear(4, 4)
        self.out = nn.Linear(4, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(self.embed(ids))).mean(1))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


def parametrized() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2))


def spectral() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(4, 5))
    for _ in range(3):
        layer(torch.randn(2, 4))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(5, 2))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(x))
        return {"a": self.a(h), "b": self.b(h)}


class MultiTask(nn.Module):
    """Rows are routed to the head of their task, the way multi-task modules do it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        h = torch.relu(self.body(x))
        out = torch.zeros(x.shape[0], 3, dtype=h.dtype)
        for t in torch.unique(task_labels).tolist():
            mask = task_labels == t
            out[mask] = self.heads[t](h[mask])
        return out


class Experts(nn.Module):
    """Samples are sorted by value before a shared layer and put back after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        back = order.argsort()
        return self.out(torch.tanh(self.a(x[order])[back] + self.b(x)))


class Branch(nn.Module):
    """A value of each sample decides which way it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(r) if r.sum().item() > 0 else self.b(r).tanh() for r in x])


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.cls, self.pos = par(1, 1, 8), par(1, 5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.cls.expand(len(t), -1, -1), t], 1) + self.pos
        return self.out(self.block(t)[:, 0])


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.gain, self.out = par(5, 5), par(2, 3, 4), par(5, 1), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("st,ntd->nsd", self.w, x)
        h = self.gain * torch.tanh(h)
        return self.out(
            torch.einsum("ntd,hdk->nthk", h, self.v.transpose(1, 2).reshape(2, 4, 3))
            .mean(2)
            .flatten(1)
            .repeat(1, 2)[:, :20]
        )


def resnet_block() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
            self.b, self.nb = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
            self.s, self.out = nn.Conv2d(3, 4, 1, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.na(self.a(x)), inplace=True)
            y = F.relu_(self.nb(self.b(y)) + self.s(x))
            return self.out(F.adaptive_avg_pool2d(y, 1).flatten(1))

    return trained_bn(Block())


def reuse() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer, nn.Linear(4, 2))


def half_frozen() -> nn.Module:
    m = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    m[0].weight.requires_grad_(False)
    m[2].bias.requires_grad_(False)
    m[4].weight.requires_grad_(False)
    return m


def checkpointed(reentrant: bool) -> Callable[[], nn.Module]:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = m.first(x)
        h = checkpoint(m.body, h, use_reentrant=reentrant)
        return m.out(h)

    return lambda: Fn(
        run, first=nn.Linear(4, 5), body=nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)), out=nn.Linear(5, 2)
    )


def custom_function() -> nn.Module:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x**3 * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return 3 * x**2 * w * g, (g * x**3).sum(0)

    return Fn(lambda m, x: m.out(Cube.apply(m.first(x), m.w)), first=nn.Linear(4, 5), w=par(5), out=nn.Linear(5, 2))


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(4, 3), rand(4)),
    "linear_one_output": Case(lambda: nn.Linear(4, 1, bias=False), rand(4)),
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
        rand(4),
    ),
    "mlp_wide": Case(lambda: nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 3)), rand(10)),
    "mlp_inplace_input": Case(
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), rand(4)
    ),
    "tokens": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2, bias=False), head(10)), rand(5, 4)
    ),
    "tokens_4d": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2), head(12)), rand(2, 3, 4)),
    "token_major": Case(
        lambda: Fn(
            lambda m, x: m.out(m.a(x.transpose(0, 1)).tanh().transpose(0, 1).flatten(1)),
            a=nn.Linear(4, 3),
            out=nn.Linear(15, 2),
        ),
        rand(5, 4),
    ),
    "conv1d": Case(conv(lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), 12), rand(2, 8)),
    "conv1d_circular": Case(conv(lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), 24), rand(2, 8)),
    "conv2d": Case(conv(lambda: nn.Conv2d(2, 3, 3), 48), rand(2, 6, 6)),
    "conv2d_same": Case(conv(lambda: nn.Conv2d(2, 3, (1, 5), padding="same"), 75), rand(2, 5, 5)),
    "conv2d_stride_crop": Case(conv(lambda: nn.Conv2d(2, 3, 3, stride=2), 12), rand(2, 6, 6)),
    "conv2d_reflect": Case(
        conv(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False), 75), rand(2, 5, 5)
    ),
    "conv2d_dilated": Case(conv(lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=(2, 1)), 90), rand(2, 6, 7)),
    "conv2d_groups": Case(conv(lambda: nn.Conv2d(4, 6, 3, groups=2), 54), rand(4, 5, 5)),
    "conv2d_depthwise": Case(conv(lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), 150), rand(3, 5, 5)),
    "conv2d_pointwise": Case(conv(lambda: nn.Conv2d(4, 3, 1), 75), rand(4, 5, 5)),
    "conv2d_transposed": Case(
        conv(lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), 192), rand(2, 4, 4)
    ),
    "conv2d_transposed_groups": Case(conv(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 486), rand(4, 4, 4)),
    "conv3d": Case(conv(lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), 180), rand(2, 3, 4, 4)),
    "conv_channels_last": Case(
        lambda: conv(lambda: nn.Conv2d(2, 3, 3), 48)().to(memory_format=torch.channels_last),
        lambda n: torch.randn(n, 2, 6, 6).to(memory_format=torch.channels_last),
    ),
    "conv_frames": Case(
        lambda: Fn(
            lambda m, x: m.out(m.c(x.flatten(0, 1)).tanh().reshape(len(x), -1)),
            c=nn.Conv2d(2, 3, 3),
            out=nn.Linear(54, 2),
        ),
        rand(2, 2, 5, 5),
    ),
    "batch_norm_1d": Case(norm(lambda: nn.BatchNorm1d(3), 3, 15), rand(2, 5)),
    "batch_norm_2d": Case(norm(lambda: nn.BatchNorm2d(3), 3, 48, 2), rand(2, 4, 4)),
    "batch_norm_flat": Case(
        lambda: trained_bn(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))), rand(4)
    ),
    "layer_norm": Case(
        lambda: trained_bn(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), head(18, 2))), rand(3, 4)
    ),
    "layer_norm_2d": Case(norm(lambda: nn.LayerNorm((3, 5)), 3, 15), rand(2, 5)),
    "group_norm": Case(norm(lambda: nn.GroupNorm(2, 4), 4, 64, 2), rand(2, 4, 4)),
    "instance_norm": Case(norm(lambda: nn.InstanceNorm2d(3, affine=True), 3, 48, 2), rand(2, 4, 4)),
    "instance_norm_running": Case(
        norm(lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), 3, 48, 2), rand(2, 4, 4), ways=GENERIC
    ),
    "rms_norm": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Tanh(), head(18, 2)), rand(3, 4)),
    "prelu": Case(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2)), rand(4)
    ),
    "prelu_conv": Case(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3), head(12)), rand(2, 5)),
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(9, 4), head(20)), ints(9, 5)),
    "embedding_padding": Case(
        lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.Tanh(), head(20)), ints(5, 5)
    ),
    "embedding_padding_sparse": Case(
        lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=0, sparse=True), nn.Tanh(), head(20)), ints(5, 5)
    ),
    "embedding_freq": Case(
        lambda: nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Tanh(), head(15)),
        ints(4, 5),
        ways=GENERIC,
    ),
    "embedding_bag_mean": Case(lambda: nn.Sequential(nn.EmbeddingBag(9, 4), nn.Tanh(), nn.Linear(4, 2)), ints(9, 5)),
    "embedding_bag_sum_padding": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(5, 4, mode="sum", padding_idx=2), nn.Tanh(), nn.Linear(4, 2)), ints(5, 5)
    ),
    "embedding_bag_mean_padding": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(5, 4, mode="mean", padding_idx=2), nn.Tanh(), nn.Linear(4, 2)),
        ints(5, 5),
        ways=GENERIC,
    ),
    "embedding_bag_max": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(9, 4, mode="max"), nn.Tanh(), nn.Linear(4, 2)), ints(9, 5), ways=GENERIC
    ),
    "embedding_bag_sparse": Case(
        lambda: nn.Sequential(nn.EmbeddingBag(9, 4, mode="sum", sparse=True), nn.Tanh(), nn.Linear(4, 2)), ints(9, 5)
    ),
    "attention": Case(attention(), rand(5, 6)),
    "attention_weights": Case(attention(weights=True), rand(5, 6)),
    "attention_token_major": Case(attention(batch_first=False), rand(5, 6)),
    "attention_causal": Case(attention(mask="causal"), rand(5, 6)),
    "attention_padding": Case(attention(mask="padding"), rand(5, 6)),
    "cross_attention": Case(cross_attention(), lambda n: (torch.randn(n, 3, 6), torch.randn(n, 4, 6))),
    "cross_attention_split": Case(
        cross_attention(kdim=5, vdim=7), lambda n: (torch.randn(n, 3, 6), torch.randn(n, 4, 5), torch.randn(n, 4, 7))
    ),
    "cross_attention_bias_kv": Case(
        cross_attention(add_bias_kv=True), lambda n: (torch.randn(n, 3, 6), torch.randn(n, 4, 6))
    ),
    "encoder_layer": Case(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head(24, 2)), rand(4, 6)
    ),
    "encoder_token_major": Case(
        lambda: Fn(
            lambda m, x: m.out(m.e(x.transpose(0, 1)).mean(0)),
            e=nn.TransformerEncoderLayer(6, 2, 8),
            out=nn.Linear(6, 2),
        ),
        rand(4, 6),
    ),
    "vit": Case(Vit, rand(3, 4, 4)),
    "rnn": Case(rnn(nn.RNN, batch_first=True), rand(4, 3)),
    "lstm_bidirectional_2": Case(rnn(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True), rand(4, 3)),
    "gru_token_major": Case(rnn(nn.GRU, num_layers=2), rand(4, 3)),
    "lstm_projection": Case(
        lambda: Fn(
            lambda m, x: m.out(m.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(3, 4, proj_size=2, batch_first=True),
            out=nn.Linear(2, 2),
        ),
        rand(4, 3),
    ),
    "lstm_cell": Case(
        lambda: Fn(
            lambda m, x: m.out(m.cell(x[:, 1], m.cell(x[:, 0]))[0]), cell=nn.LSTMCell(3, 4), out=nn.Linear(4, 2)
        ),
        rand(2, 3),
    ),
    "bilinear": Case(lambda: Fn(lambda m, x: m.b(x, x.tanh()), b=nn.Bilinear(3, 3, 2)), rand(3)),
    "ntk_parametrisation": Case(lambda: nn.Sequential(NTKLinear(4, 6), nn.ReLU(), NTKLinear(6, 2)), rand(4)),
    "weight_norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), rand(4)
    ),
    "weight_norm_conv": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 3, 2)), nn.Tanh(), head(12)), rand(2, 5)
    ),
    "spectral_norm": Case(spectral, rand(4)),
    "parametrize": Case(parametrized, rand(4)),
    "lora": Case(lambda: nn.Sequential(LoRA(4, 5), nn.Tanh(), LoRA(5, 2, freeze=False)), rand(4)),
    "tanh_weight": Case(
        lambda: Fn(lambda m, x: F.linear(x, m.w.tanh()).relu() @ m.v.exp(), w=par(5, 4), v=par(5, 2)), rand(4)
    ),
    "weight_squared": Case(lambda: Fn(lambda m, x: x @ (m.w * m.w) + m.b.sum(), w=par(4, 2), b=par(3)), rand(4)),
    "gain": Case(
        lambda: Fn(lambda m, x: m.g * m.l(x * m.s) / 2 - m.b, g=par(1), s=par(4), b=par(3), l=nn.Linear(4, 3)), rand(4)
    ),
    "gain_scalar": Case(
        lambda: Fn(lambda m, x: m.g * m.l(x), g=nn.Parameter(torch.tensor(0.7)), l=nn.Linear(4, 3)), rand(4)
    ),
    "division": Case(
        lambda: Fn(lambda m, x: m.l(x) / m.g, g=nn.Parameter(torch.rand(3) + 0.5), l=nn.Linear(4, 3)),
        rand(4),
        ways=GENERIC,
    ),
    "einsum_mixer": Case(Mixer, rand(5, 4), ways=GENERIC),
    "positions": Case(
        lambda: Fn(
            lambda m, x: m.out((m.e(x) + m.p).tanh().flatten(1)),
            e=nn.Embedding(7, 4),
            p=par(5, 4),
            out=nn.Linear(20, 2),
        ),
        ints(7, 5),
    ),
    "vector_head": Case(lambda: Fn(lambda m, x: (m.l(x).tanh() @ m.v)[:, None], l=nn.Linear(4, 5), v=par(5)), rand(4)),
    "weight_left": Case(lambda: Fn(lambda m, x: (m.w @ x.T).tanh().T @ m.v, w=par(5, 4), v=par(5, 2)), rand(4)),
    "tied": Case(Tied, ints(11, 3)),
    "tied_transposed": Case(lambda: Fn(lambda m, x: (m.a(x).tanh() @ m.a.weight).tanh(), a=nn.Linear(4, 5)), rand(4)),
    "reused_layer": Case(reuse, rand(4)),
    "reused_conv": Case(
        lambda: (lambda c: nn.Sequential(c, nn.Tanh(), c, head(32)))(nn.Conv1d(4, 4, 3, padding=1)), rand(4, 8)
    ),
    "half_frozen": Case(half_frozen, rand(4)),
    "unused": Case(lambda: Fn(lambda m, x: m.a(x), a=nn.Linear(4, 2), b=nn.Linear(4, 2)), rand(4)),
    "resnet_block": Case(resnet_block, rand(3, 6, 6)),
    "functional_call": Case(
        lambda: Fn(
            lambda m, x: torch.func.functional_call(m.l, {"weight": m.w * 2}, (x,)), l=nn.Linear(4, 3), w=par(3, 4)
        ),
        rand(4),
    ),
    "data_parallel": Case(lambda: nn.DataParallel(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))), rand(4)),
    "checkpoint_reentrant": Case(checkpointed(True), rand(4)),
    "checkpoint": Case(checkpointed(False), rand(4)),
    "custom_function": Case(custom_function, rand(4), ways=GENERIC),
    "item": Case(
        lambda: Fn(lambda m, x: m.l(x * float(x.detach().abs().max().item() > -1)), l=nn.Linear(4, 3)), rand(4)
    ),
    "branch": Case(Branch, rand(4), ways=GENERIC),
    "sorted": Case(Experts, rand(4), ways=GENERIC),
    "dict_output": Case(TwoHeads, rand(4), {"output_selector": lambda y: y["a"]}),
    "tuple_output": Case(
        lambda: Fn(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(4, 2), b=nn.Linear(4, 3)),
        rand(4),
        {"output_selector": lambda y: y[1]},
    ),
    "dict_input": Case(
        lambda: Fn(lambda m, u, v: m.a(u) * m.b(v), a=nn.Linear(4, 2), b=nn.Embedding(5, 2)),
        lambda n: {"u": torch.randn(n, 4), "v": torch.randint(5, (n,))},
    ),
    "dict_input_whole": Case(
        Whole,
        lambda n: {"u": torch.randn(n, 4), "ids": torch.randint(5, (n,))},
        {"task_labels": lambda n: torch.ones(n)},
    ),
    "tuple_input_whole": Case(Pair, lambda n: (torch.randn(n, 4), torch.randint(5, (n,)))),
    "multi_task": Case(MultiTask, rand(4), {"task_labels": lambda n: torch.arange(n) % 2}, ways=GENERIC),
    "one_task": Case(MultiTask, rand(4), {"task_labels": lambda n: torch.zeros(n, dtype=torch.long)}, ways=GENERIC),
    "max_pool": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), head(12)), rand(2, 6, 6)
    ),
    "dropout": Case(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)), rand(4)),
    "window_attention": Case(
        lambda: Fn(
            lambda m, x: m.out(m.e(torch.roll(x, 1, 1).reshape(-1, 2, 6)).reshape(len(x), -1)),
            e=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            out=nn.Linear(24, 2),
        ),
        rand(4, 6),
        ways=GENERIC,
    ),
    "table": Case(lambda: Fn(lambda m, x: m.l(x) + m.t[torch.tensor([2, 0, 2])], t=par(4), l=nn.Linear(4, 3)), rand(4)),
    "complex_product": Case(
        lambda: Fn(
            lambda m, x: as_pairs(torch.complex(x, x.tanh()) * torch.view_as_complex(m.w)) @ m.o,
            w=par(4, 2),
            o=par(8, 3),
        ),
        rand(4),
    ),
    "complex_linear": Case(
        lambda: Fn(
            lambda m, x: as_pairs(torch.complex(x, x.sin()) @ torch.complex(m.a, m.b)), a=par(4, 2), b=par(4, 2)
        ),
        rand(4),
    ),
    "complex_quotient": Case(
        lambda: Fn(
            lambda m, x: as_pairs(torch.view_as_complex(m.v) / torch.complex(x, x.cos()) / torch.view_as_complex(m.w)),
            v=par(4, 2),
            w=par(4, 2),
        ),
        rand(4),
    ),
    "complex_heads": Case(
        lambda: Fn(
            lambda m, x: as_pairs(
                torch.einsum("nhi,hio->nho", torch.complex(x, x.cos()).view(-1, 2, 2), torch.view_as_complex(m.w))
            ),
            w=par(2, 2, 3, 2),
        ),
        rand(4),
    ),
    "complex_inputs": Case(
        lambda: Fn(lambda m, x: m.out(as_pairs(x * m.g @ m.w.to(x.dtype)).tanh()), g=par(4), w=par(4, 3), out=head(6)),
        lambda n: torch.randn(n, 4, dtype=torch.complex64),
    ),
    "imaginary_scale": Case(
        lambda: Fn(lambda m, x: as_pairs(x * (m.g * 1j) * (0.3 + 1j)) @ m.o, g=par(4), o=par(8, 2)), rand(4)
    ),
    "fourier_layer": Case(
        lambda: Fn(
            lambda m, x: m.out(fourier(m.lift(x), m.w).tanh()), lift=nn.Conv1d(2, 3, 1), w=par(3, 2, 5, 2), out=head(16)
        ),
        rand(2, 8),
    ),
    "table_of_rows": Case(
        lambda: Fn(lambda m, x: m.t[x].tanh().sum(1) + m.t[x - 9, 1:].sum((1, 2), keepdim=True)[:, 0], t=par(9, 3)),
        ints(9, 4),
    ),
    "table_of_numbers": Case(lambda: Fn(lambda m, x: m.t[x].tanh() @ m.o, t=par(9), o=par(4, 2)), ints(9, 4)),
    "table_token_major": Case(lambda: Fn(lambda m, x: m.t[x.T].tanh().sum(0), t=par(9, 3)), ints(9, 4)),
    "table_by_pairs": Case(
        lambda: Fn(lambda m, x: m.t[x, x % 3].tanh() @ m.o, t=par(9, 3), o=par(4, 2)), ints(9, 4), ways=GENERIC
    ),
    "index_select": Case(
        lambda: Fn(lambda m, x: m.t.index_select(0, x.flatten()).view(*x.shape, 3).tanh().sum(1), t=par(9, 3)),
        ints(9, 4),
    ),
    "ensemble": Case(
        lambda: Fn(
            lambda m, x: torch.baddbmm(m.b[:, None], x[None].expand(3, -1, -1), m.w, beta=0.5, alpha=2).tanh().mean(0),
            w=par(3, 4, 2),
            b=par(3, 2),
        ),
        rand(4),
    ),
    "bilinear_tokens": Case(lambda: Fn(lambda m, x: m.b(x, x.sin()).flatten(1), b=nn.Bilinear(4, 4, 3)), rand(5, 4)),
    "no_width": Case(
        lambda: Fn(
            lambda m, x: torch.cat([m.from_none(x[:, :0]) + m.a(x), m.to_none(x)], 1),
            a=nn.Linear(4, 2),
            from_none=quietly(lambda: nn.Linear(0, 2)),
            to_none=quietly(lambda: nn.Linear(4, 0)),
        ),
        rand(4),
        ways=GENERIC,  # what is saved of a factor without entries is empty, and has no rule
    ),
    "adaptive_softmax": Case(
        lambda: Fn(
            lambda m, x: m.s.log_prob(m.a(x)),
            a=nn.Linear(4, 8),
            s=quietly(lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 6])),
        ),
        rand(4),
        ways=GENERIC,  # what is saved of a factor without entries is empty, and has no rule
    ),
    "scaled_slices": Case(
        lambda: Fn(
            lambda m, x: (
                sum(x.roll(i, 1) @ (w * (i + 1)) for i, w in enumerate(m.w.unbind())) + x @ (m.v * m.v.new(SCALES))
            ),
            w=par(3, 4, 2),
            v=par(4, 2),
        ),
        rand(4),
    ),
    "autocast_inside": Case(autocast_inside, rand(4)),
    "renormalised_embedding": Case(
        lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Flatten(), nn.Linear(20, 2)), ints(9, 5)
    ),
    "hooked_weight_norm": Case(
        lambda: nn.Sequential(old_weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)), rand(4)
    ),
}
