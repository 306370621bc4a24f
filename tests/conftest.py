"""What several tests share: a cache of their own, and a task and a network that are tiny."""
import math

import pytest
import torch
from hypothesis import settings

from ftlearn.data import Split, Task
from ftlearn.pretraining.autoencoders import Preprocess, ResidualCNN
from ftlearn.transfer.model import Backbone, TransferModel

torch.set_num_threads(1)       # on tensors this small, a second thread costs more than it gives
settings.register_profile("short", deadline=None, max_examples=30)
settings.load_profile("short")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache folder"
    monkeypatch.setenv("FTLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def patterns(n, classes=3, size=8, seed=0):
    "`n` noisy images of `classes` patterns, the classes in turn"
    rng = torch.Generator().manual_seed(seed)
    shapes = torch.rand(classes, 1, size, size, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    images = shapes[labels] + 0.3 * torch.randn(n, 1, size, size, generator=rng)
    return Split((255 * images.clamp(0, 1)).to(torch.uint8), labels)


@pytest.fixture
def task():
    return Task("patterns", patterns(42, seed=1), patterns(30, seed=2), patterns(30, seed=3), ["a", "b", "c"])


def tiny_backbone(pretrained=True, seed=0):
    "A residual network with batch normalisation; its random weights count as pretrained"
    torch.manual_seed(seed)
    return Backbone("tiny", ResidualCNN((4, 8), 1), 8, Preprocess(8, [0.5], [0.3]), pretrained, lr=1e-3)


@pytest.fixture
def make_model(task):
    "Makes the same tiny model again and again"
    return lambda pretrained=True: TransferModel(tiny_backbone(pretrained), task.label_names)


def snapshot(module):
    "A copy of all weights and buffers"
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before, module):
    "The names of the weights and buffers that are not bitwise what they were"
    return [name for name, value in module.state_dict().items() if not torch.equal(before[name], value)]


def improving(start, stop=math.inf):
    "A measurement that is better every time, so that the last weights are kept, until the run is interrupted at look `stop`"
    looks = iter(range(start, 1000))
    def measure(model, split):
        look = next(looks)
        if look == stop: raise KeyboardInterrupt
        return {"loss": 1 / (1 + look)}
    return measure
