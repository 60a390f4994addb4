"""A second device without a second device: CPU memory under another name, where numpy and mixed operands are refused.

It is torch's PrivateUse1 mechanism with tensors of a subclass whose numbers lie in an ordinary tensor on the CPU. What
is allowed beside tensors of the device is what CUDA allows: copies from and to the CPU, single numbers, and indices.
"""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

NAME = "standin"
DEVICE = torch.device("cpu")  # until `register` was called
_COPIES = ("_to_copy", "copy_", "copy", "_copy_from", "_copy_from_and_resize", "set_")
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class StandIn(Tensor):
    """A tensor on the stand-in device; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self):  # `module.double()` exchanges such tensors whole
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, size, stride):
        return StandIn(tensors["inner"])

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def __deepcopy__(self, memo):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_):
        return f"StandIn({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """Run an operator on the CPU for tensors of the stand-in device."""
    name = func.__name__.split(".")[0]
    flat, spec = pytree.tree_flatten((args, kwargs))
    ours = {id(t.inner): t for t in flat if isinstance(t, StandIn)}
    strangers = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, StandIn)]
    if ours and name not in _COPIES:
        for t in strangers:
            if t.dim() and not (name in _INDEXED and any(t is i for i in args[1] if i is not None)):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and"
                    f" {t.device}! ({func})"
                )
    where = kwargs.get("device")
    here = bool(ours) if where is None else torch.device(where).type == NAME
    generators = [g for g in flat if isinstance(g, torch.Generator) and g.device.type != NAME]
    if here and generators and name != "randperm":
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generators[0].device.type}'")
    flat = [t.inner if isinstance(t, StandIn) else t for t in flat]
    inner_args, inner_kwargs = pytree.tree_unflatten(flat, spec)
    if where is not None:
        inner_kwargs["device"] = torch.device("cpu")
    out = _OWN.get(name, func)(*inner_args, **inner_kwargs)

    def back(t):
        if not isinstance(t, Tensor):
            return t
        if id(t) in ours:  # written in place
            known = ours[id(t)]
            if known.shape == t.shape:
                return known
            known.data = StandIn(t)
            return known
        if not here:
            return t.clone() if any(t is i for i in flat) else t
        return StandIn(t)

    return pytree.tree_map(back, out)


def _gru_cell(igates, hgates, hx, ibias=None, hbias=None):
    """One step of a GRU as devices with fused cells have it; CPUs have no such operator."""
    (ir, iz, i), (hr, hz, h) = (g.chunk(3, 1) for g in (igates, hgates))
    (ar, az, a), (br, bz, b) = ((0, 0, 0) if g is None else g.chunk(3) for g in (ibias, hbias))
    r, z, h = torch.sigmoid(ir + ar + hr + br), torch.sigmoid(iz + az + hz + bz), h + b
    n = torch.tanh(i + a + r * h)
    return n + z * (hx - n), torch.cat([r, z, n, hx, h], 1)


def _gru_cell_backward(grad, workspace, has_bias):
    r, z, n, hx, h = workspace.chunk(5, 1)
    dn = grad * (1 - z) * (1 - n * n)
    dz, dr = grad * (hx - n) * z * (1 - z), dn * h * r * (1 - r)
    gi, gh = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return gi, gh, grad * z, *((gi.sum(0), gh.sum(0)) if has_bias else (None, None))


def _lstm_cell(igates, hgates, cx, ibias=None, hbias=None):
    """One step of an LSTM, likewise."""
    i, f, g, o = (igates + hgates + sum(b for b in (ibias, hbias) if b is not None)).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * cx + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(grad_h, grad_c, cx, c, workspace, has_bias):
    if grad_h is None and grad_c is None:
        return None, None, None
    i, f, g, o = workspace.chunk(4, 1)
    t = c.tanh()
    dh = torch.zeros_like(c) if grad_h is None else grad_h
    dc = dh * o * (1 - t * t) + (0 if grad_c is None else grad_c)
    gates = torch.cat([dc * g * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)], 1)
    return gates, dc * f, gates.sum(0) if has_bias else None


_OWN = {
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
}


class _Module:
    """What torch asks of `torch.standin`."""

    waited = 0

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def device_count(self):
        return 1

    def synchronize(self, device=None):
        _Module.waited += 1

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


_LIBRARIES = []


def register():
    """Make the device known to torch, once in a process; return it."""
    global DEVICE
    if _LIBRARIES:
        return DEVICE
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    DEVICE = torch.device(NAME, 0)
    library = torch.library.Library("aten", "IMPL")
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("aten::") and _is_factory(schema):
            operator = getattr(torch.ops.aten, schema.name.removeprefix("aten::"), None)
            overload = getattr(operator, schema.overload_name or "default", None)
            if overload is not None:
                library.impl(overload, _factory(overload), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    every = torch.library.Library("_", "IMPL")  # torch makes indices out of lists beneath the subclass
    every.fallback(lambda operator, *args, **kwargs: _run(operator, args, kwargs), "PrivateUse1")
    _LIBRARIES.extend([library, every])
    return DEVICE


def _copy_from(source, into, non_blocking=False):
    numbers = [t.inner if isinstance(t, StandIn) else t for t in (into, source)]
    numbers[0].copy_(numbers[1])
    return into


def _is_factory(schema):
    kinds = [str(a.type) for a in schema.arguments]
    names = [a.name for a in schema.arguments]
    return "device" in names and not any("Tensor" in kind for kind in kinds)


def _factory(overload):
    def make(*args, **kwargs):
        return _run(overload, args, kwargs)

    return make
