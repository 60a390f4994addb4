"""A frozen backbone with low-rank updates and a head that grows: which of the two moves the kernel at a boundary?"""

import argparse
import sys
import warnings

import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import load_data, split_digits
from avalanche_ntk.observables import PerLayer

try:
    from peft import LoraConfig, get_peft_model
except ImportError:
    sys.exit("This example needs peft: python -m pip install peft")
warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny
torch.manual_seed(0)

# Instead of a backbone that you would load: one trained to predict by how much digits are rotated.
backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
digits = torch.stack([image for image, _ in load_data("digits").train])[:: 10 if tiny else 1]
turned, by = torch.cat([digits.rot90(k, (2, 3)) for k in range(4)]), torch.arange(4).repeat_interleave(len(digits))
pretext = nn.Sequential(backbone, nn.Linear(128, 4))
optimizer = torch.optim.Adam(pretext.parameters(), lr=1e-3)
for _ in range(2 if tiny else 200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(pretext(turned), by).backward()
    optimizer.step()

adapted = get_peft_model(backbone, LoraConfig(r=4, target_modules=["1", "3"]))  # only the updates are trainable
model = nn.Sequential(adapted, IncrementalClassifier(128))
ntk = NTKPlugin(
    ProbeSpec(size=20 if tiny else 64, from_experience=0),
    Schedule.every_iterations(20),
    observe=[PerLayer({"updates": ["*lora_*"], "head": ["1.*"]})],
)
strategy = Naive(
    model=model,
    optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
    train_mb_size=16,
    train_epochs=1 if tiny else 5,
    plugins=[ntk],
    evaluator=EvaluationPlugin(loggers=[]),
)
for experience in split_digits(n_experiences=2 if tiny else 5).train_stream:
    strategy.train(experience)

table = ntk.trajectory.to_pandas()
columns = [f"layer[{g}].{c}" for g in ("updates", "head") for c in ("kernel_norm", "distance_init")]
print(table.loc[table.event.str.startswith("experience"), ["event", "iteration", *columns]].to_string(index=False))
