"""Gradient starvation: the easier one feature, the less a network learns of the other.

Two moons are moved apart, so that a straight line separates them; the network is then tested on the unshifted moons.
With a penalty on the logits (spectral decoupling) it learns more of their shape.
"""

import argparse

import torch
from sklearn.datasets import make_moons
from torch.nn.functional import softplus

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import label_signed_kernel, mode_response

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="a few steps only")
steps = 100 if parser.parse_args().tiny else 1500


def moons(n, shift, seed):
    x, labels = make_moons(n, noise=0.1, random_state=seed)
    y = 2.0 * labels - 1.0
    x[:, 1] -= shift * y
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


x_test, y_test = moons(1000, 0.0, seed=1)
print("shift  penalty  accuracy without shift  residual in the first 5 modes")
for shift in (0.0, 0.25, 0.5):
    x, y = moons(200, shift, seed=0)
    for penalty in (0.0, 0.1):
        torch.manual_seed(0)
        model = MLP(2, 1, width=64, depth=2)
        signed = label_signed_kernel(empirical_ntk(model, x).numpy(), y.numpy())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(steps):
            logit = model(x)[:, 0]
            loss = softplus(-y * logit).mean() + penalty / 2 * (logit**2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            residual = torch.sigmoid(-y * model(x)[:, 0])  # of cross-entropy, label-signed
            accuracy = float((y_test * model(x_test)[:, 0] > 0).double().mean())
        power = mode_response(signed, residual.numpy()).power
        print(f"{shift:5.2f}  {penalty:7.1f}  {accuracy:22.3f}  {power[:5].round(4)}")
