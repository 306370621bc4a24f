"""Image objectives on images of other shapes, and with settings that make no sense."""
from dataclasses import replace

import pytest
import torch

from ftlearn.data import Split, Task
from ftlearn.pretraining.autoencoders import Denoising, MaskedPatches, Preprocess, Reconstruction, ResidualCNN
from ftlearn.pretraining.images import Contrastive, SimCLR
from ftlearn.training import pretrain


def images(*shape, n=12):
    split = Split(torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 2)
    return Task("photos", split, split, split, ["a", "b"])


@pytest.mark.parametrize("objective", [Reconstruction(), Denoising(), MaskedPatches(), SimCLR()])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16), (1, 8, 16), (3, 32, 32)])
def test_images_that_the_default_network_does_not_take_are_refused(objective, shape):
    "Guards against photographs that are silently made grey and tiny, and against an error about broadcasting."
    with pytest.raises(ValueError, match=f"images of 'photos' are {' × '.join(map(str, shape))}.*takes 1 × 8 × 8.*give pretrain a model"):
        pretrain(objective, images(*shape), steps=1)


def test_a_task_without_images_is_refused():
    with pytest.raises(ValueError, match="task of text-classification"): Reconstruction().prepare(replace(images(1, 8, 8), kind="text-classification"))


def test_other_images_need_only_a_model():
    model = Contrastive(ResidualCNN((4, 8), 1, channels=3), Preprocess(16, [0.5] * 3, [0.25] * 3))
    assert len(pretrain(SimCLR(), images(3, 16, 16), model=model, lr=1e-3, steps=2, batch_size=6).history.losses) == 2
    copy = torch.nn.Conv2d(3, 3, 1)
    assert len(pretrain(MaskedPatches(patch=4), images(3, 8, 16), model=copy, steps=2).history.losses) == 2


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(ValueError, match="noise is a standard deviation"): Denoising(noise=noise)


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": 1.5}, {"rate": float("nan")}, {"patch": 0}, {"patch": -2}])
def test_patches_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"): MaskedPatches(**options)


def test_patches_divide_the_image():
    with pytest.raises(ValueError, match="8 × 8 pixels cannot be cut into patches of 3 × 3"): MaskedPatches(patch=3).corrupted(torch.rand(2, 1, 8, 8))


def test_a_batch_in_which_nothing_is_hidden_costs_nothing():
    "Guards against 0 / 0."
    nothing = MaskedPatches(rate=1e-9)
    assert nothing(torch.nn.Conv2d(1, 1, 1), torch.rand(2, 1, 8, 8)).item() == 0
