"""Every case, every reduction, self and cross, against the oracle: one sample and one output at a time, in float64."""

import pytest
import torch

from avalanche_ntk.kernels import empirical_ntk, empirical_ntk_by_group, reference_ntk
from tests.support.cases import CASES, error

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def build(name, n, seed=0):
    case = CASES[name]
    torch.manual_seed(seed)
    model = case.make()
    x, x2 = case.inputs(n), case.inputs(3)
    one, two = {}, {}
    for key, value in case.kwargs.items():
        if key == "task_labels":
            one[key], two[key] = value(n), value(n)
            two["task_labels2"] = value(3)
        else:
            one[key] = two[key] = value
    return case, model, x, x2, one, two


# Accelerators compute a recurrent cell as one operator, which takes the biases; processors add these before
FUSED = {"lstm": {"jacobian"}, "gru": {"masked"}}


def ways_of(name, x):
    """Return the forms that a case's parameters may take on its device."""
    accelerated = isinstance(x, torch.Tensor) and x.device.type != "cpu"
    return CASES[name].ways | (FUSED.get(name.partition("_")[0], set()) if accelerated else set())


@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_oracle_for_every_reduction_self_and_cross(name):
    _, model, x, x2, one, two = build(name, CASES[name].n)
    full = reference_ntk(model, x, reduction="full", **one)
    cross = reference_ntk(model, x, x2, reduction="full", **two)
    ways = set()
    for theta, second, kwargs in ((full, None, one), (cross, x2, two)):
        # the two reductions of the oracle follow from its full kernel by their definitions
        wanted = {
            "full": theta,
            "trace": theta.diagonal(dim1=2, dim2=3).sum(-1),
            "sum_logits": theta.sum((2, 3)),
        }
        for reduction, want in wanted.items():
            got, info = empirical_ntk(
                model, x, second, reduction=reduction, dtype=torch.float64, return_info=True, **kwargs
            )
            assert got.dtype == torch.float64 and got.shape == want.shape
            assert error(got, want) <= 1e-12, (reduction, second is not None, info)
            ways |= set(info.methods.values())
    assert ways <= ways_of(name, x), info


@pytest.mark.parametrize("name", CASES)
def test_float32_and_a_single_sample(name):
    _, model, x, _, one, _ = build(name, CASES[name].n, seed=1)
    assert error(empirical_ntk(model, x, **one), reference_ntk(model, x, **one)) <= 2e-6
    _, model, x, _, one, _ = build(name, 1, seed=2)
    got, info = empirical_ntk(model, x, dtype=torch.float64, return_info=True, **one)
    assert got.shape == (1, 1) and error(got, reference_ntk(model, x, **one)) <= 1e-12
    # torch's attention has another graph for one sample
    assert set(info.methods.values()) <= ways_of(name, x), info.reasons


@pytest.mark.parametrize("method", ["ghost", "explicit", "jacobian", "loop"])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "vit", "embedding_padding", "reused_layer", "lora", "resnet_block"])
def test_every_way_to_compute_a_kernel_agrees(name, method):
    _, model, x, x2, one, two = build(name, 5)
    for reduction in ("full", "trace"):
        for second, kwargs in ((None, one), (x2, two)):
            got, info = empirical_ntk(
                model, x, second, reduction=reduction, dtype=torch.float64, method=method, return_info=True, **kwargs
            )
            assert error(got, reference_ntk(model, x, second, reduction=reduction, **kwargs)) <= 1e-12
    if method in ("jacobian", "loop"):
        assert set(info.methods.values()) == {method}


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp", "conv2d", "vit", "tied", "multi_task"])
def test_blocks_of_samples_do_not_change_the_kernel(name, block):
    _, model, x, x2, one, two = build(name, 5)
    for reduction in ("full", "sum_logits"):
        for second, kwargs in ((None, one), (x2, two)):
            if second is not None and name == "multi_task":
                continue
            whole = empirical_ntk(model, x, second, reduction=reduction, dtype=torch.float64, **kwargs)
            parts = empirical_ntk(model, x, second, reduction=reduction, dtype=torch.float64, block=block, **kwargs)
            assert error(parts, whole) <= 1e-13


@pytest.mark.parametrize("name", ["mlp", "resnet_block", "vit", "tied", "encoder_layer", "lstm_cell", "lora"])
def test_a_small_budget_does_not_change_the_kernel(name):
    """Nor does it send a parameter another way; batches of different sizes go through the same steps."""
    _, model, x, x2, one, two = build(name, 7)
    want, cross = reference_ntk(model, x, **one), reference_ntk(model, x, x2, **two)
    biggest = sum(p.numel() for p in model.parameters()) * 8
    for times in (6, 9, 14, 20):
        for a, b, wanted in ((x, None, want), (x, x2, cross), (x2, x, cross.T)):
            got, info = empirical_ntk(
                model, a, b, dtype=torch.float64, memory_budget=times * biggest, return_info=True, **one
            )
            assert error(got, wanted) <= 1e-12
            assert set(info.methods.values()) <= ways_of(name, x), (times, info.reasons)
    if name == "mlp":
        got, info = empirical_ntk(model, x, dtype=torch.float64, memory_budget=400, return_info=True, **one)
        assert error(got, want) <= 1e-12 and info.block < 7


@pytest.mark.parametrize("name", ["mlp", "conv2d_groups", "attention", "tied", "reused_layer", "weight_norm", "vit"])
def test_layers_sum_to_the_whole_and_equal_the_oracle(name):
    _, model, x, x2, one, two = build(name, 4)
    groups = {k: [k] for k, p in model.named_parameters() if p.requires_grad}
    for second, kwargs in ((None, one), (x2, two)):
        parts = empirical_ntk_by_group(model, x, groups, second, dtype=torch.float64, **kwargs)
        whole = empirical_ntk(model, x, second, dtype=torch.float64, **kwargs)
        assert error(sum(parts.values()), whole) <= 1e-13
        for k, part in parts.items():
            want = reference_ntk(model, x, second, params=k, **kwargs)
            # a parameter whose gradient vanishes identically leaves rounding only
            assert float((part - want).norm()) <= 1e-12 * max(float(want.norm()), 1e-12 * float(whole.norm())), k


@pytest.mark.parametrize("outputs", [[2, 0], slice(1, 3), [1]])
@pytest.mark.parametrize("reduction", ["full", "trace", "sum_logits"])
def test_kept_outputs(outputs, reduction):
    _, model, x, _, _, _ = build("resnet_block", 4)
    got = empirical_ntk(model, x, reduction=reduction, outputs=outputs, dtype=torch.float64)
    assert error(got, reference_ntk(model, x, reduction=reduction, outputs=outputs)) <= 1e-12
    full = reference_ntk(model, x, reduction="full")[:, :, outputs][..., outputs]
    want = {"full": full, "trace": full.diagonal(dim1=2, dim2=3).sum(-1), "sum_logits": full.sum((2, 3))}[reduction]
    assert error(got, want) <= 1e-12


def test_named_layers_and_parameters():
    _, model, x, _, _, _ = build("mlp", 4)
    for chosen in (
        {"layers": "0"},
        {"layers": ["0", "4"]},
        {"params": "*.bias"},
        {"params": "2.weight", "layers": "4"},
    ):
        got = empirical_ntk(model, x, dtype=torch.float64, **chosen)
        assert error(got, reference_ntk(model, x, **chosen)) <= 1e-12


def test_by_hand():
    """A linear layer: Θ[n,m,c,d] = δ_cd (<x_n, x_m> + 1), the 1 from the bias."""
    model = torch.nn.Linear(2, 2)
    x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    theta = empirical_ntk(model, x, reduction="full")
    gram = torch.tensor([[6.0, 7.0], [7.0, 10.0]])
    assert torch.equal(theta, gram[:, :, None, None] * torch.eye(2))
    assert torch.equal(empirical_ntk(model, x), 2 * gram)
    assert torch.equal(empirical_ntk(model, x, reduction="sum_logits"), 2 * gram)


def test_a_kernel_does_not_depend_on_the_batch_around_it():
    _, model, x, _, _, _ = build("resnet_block", 9)
    whole = empirical_ntk(model, x, dtype=torch.float64)
    assert error(empirical_ntk(model, x[:2], dtype=torch.float64), whole[:2, :2]) <= 1e-12
    assert error(empirical_ntk(model, x[[7]], dtype=torch.float64), whole[7:8, 7:8]) <= 1e-12


def test_all_zero_kernel_is_returned_as_it_is():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
    torch.nn.init.constant_(model[0].bias, -100.0)
    assert torch.equal(empirical_ntk(model, torch.rand(3, 3)), torch.zeros(3, 3))


def test_half_precision_models_are_measured_in_float32():
    _, model, x, _, _, _ = build("mlp", 4)
    model.to(torch.bfloat16)
    got = empirical_ntk(model, x)
    assert got.dtype == torch.float32 and error(got, reference_ntk(model, x)) <= 2e-6
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_a_plan_serves_other_weights_and_batch_sizes_and_a_grown_head_gets_a_new_one():
    _, model, x, _, _, _ = build("mlp", 6)
    for n in (6, 3, 5):
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        assert error(empirical_ntk(model, x[:n], dtype=torch.float64), reference_ntk(model, x[:n])) <= 1e-12
    model[4] = torch.nn.Linear(5, 7)
    assert error(empirical_ntk(model, x, dtype=torch.float64), reference_ntk(model, x)) <= 1e-12


def test_a_head_that_starts_at_zero_and_comes_alive():
    """No signal, no order of samples to be read: nothing may be remembered from such a plan."""
    _, model, x, _, _, _ = build("encoder_token_major", 4)
    torch.nn.init.zeros_(model.out.weight)
    got, info = empirical_ntk(model, x, dtype=torch.float64, return_info=True)
    assert error(got, reference_ntk(model, x)) <= 1e-12 and info.reasons == {}
    torch.nn.init.normal_(model.out.weight)
    got, info = empirical_ntk(model, x, dtype=torch.float64, return_info=True)
    assert error(got, reference_ntk(model, x)) <= 1e-12 and info.reasons == {}


def test_units_dead_for_the_samples_of_the_plan_only():
    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (2, 2)), torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6, 2)
    )
    torch.nn.init.constant_(model[1].bias, -5.0)
    x = torch.randn(12, 4) * 0.1
    x[6:] = torch.randn(6, 4) * 20
    assert error(empirical_ntk(model, x, dtype=torch.float64), reference_ntk(model, x)) <= 1e-12
    assert error(empirical_ntk(model, x.flip(0), dtype=torch.float64), reference_ntk(model, x.flip(0))) <= 1e-12


@pytest.mark.parametrize("method", ["auto", "explicit", "ghost", "jacobian"])
def test_float32_sums_over_millions_of_products_keep_their_digits(method):
    """A running float32 sum over the 1.5 million entries of ten outputs' gradients of one weight is wrong by 3e-5."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(96, 256),
        torch.nn.GELU(),
        torch.nn.Linear(256, 96),
        torch.nn.Flatten(),
        torch.nn.Linear(96 * 9, 10),
    )
    x = torch.randn(4, 9, 96)
    want = empirical_ntk(model, x, dtype=torch.float64)
    assert error(empirical_ntk(model, x, method=method), want) <= 1e-6
    wide = torch.nn.Sequential(torch.nn.Linear(60000, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x = torch.rand(3, 60000)
    assert error(empirical_ntk(wide, x, method=method), empirical_ntk(wide, x, dtype=torch.float64)) <= 1e-6
