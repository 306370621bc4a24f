"""The networks that are timed. Their weights are random: a step takes as long as with pretrained ones."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftlearn.pretraining.images import untrained_glyph_cnn
from ftlearn.transfer.model import Backbone, TransferModel


def glyph_cnn(label_names=tuple("0123456789")) -> TransferModel:
    "The residual network of the course with a new head."
    torch.manual_seed(0)
    backbone, prepare = untrained_glyph_cnn()
    return TransferModel(Backbone("glyph-cnn", backbone, backbone.width, prepare, True, lr=3e-4), list(label_names))


def on_digits() -> tuple[nn.Module, Callable[[], Tensor]]:
    "The network of the course on 32 images of 8 × 8: a model, and a function that gives its loss."
    model = glyph_cnn().train()
    images, labels = torch.rand(32, 1, 8, 8), torch.randint(10, (32,))
    return model, lambda: F.cross_entropy(model(images), labels)


def resnet18() -> tuple[nn.Module, Callable[[], Tensor]]:
    "torchvision's ResNet-18 on 16 images of 64 × 64."
    import torchvision
    model = torchvision.models.resnet18(num_classes=10)
    images, labels = torch.rand(16, 3, 64, 64), torch.randint(10, (16,))
    return model, lambda: F.cross_entropy(model(images), labels)


def minilm() -> tuple[nn.Module, Callable[[], Tensor]]:
    "A BERT of the size of all-MiniLM-L6-v2, 22.7 million weights, on 16 sequences of 32 tokens."
    from transformers import BertConfig, BertModel
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config)
    head = nn.Linear(384, 2)
    tokens, labels = torch.randint(1000, 30000, (16, 32)), torch.randint(2, (16,))
    return model, lambda: F.cross_entropy(head(model(tokens).last_hidden_state.mean(1)), labels)
