"""The networks that are timed. Their weights are random: a step takes as long as with pretrained ones."""
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass
class Step:
    "A batch, and a network in two parts."
    body: nn.Module | Callable[[Tensor], Tensor]      # inputs → (n, d) features
    head: nn.Module
    inputs: Tensor
    labels: Tensor
    weights: list[nn.Parameter]                       # of both parts

    def features(self) -> Tensor: return self.body(self.inputs)
    def loss(self, features: Tensor) -> Tensor: return F.cross_entropy(self.head(features), self.labels)


def on_digits() -> Step:
    "The network of the course on 32 images of 8 × 8."
    model = glyph_cnn().train()
    return Step(model.features, model.head, torch.rand(32, 1, 8, 8), torch.randint(10, (32,)), list(model.parameters()))


def resnet18() -> Step:
    "torchvision's ResNet-18 on 16 images of 224 × 224, the size that its weights are prepared for."
    import torchvision
    body, head = torchvision.models.resnet18(), nn.Linear(512, 10)
    body.fc = nn.Identity()
    return Step(body, head, torch.rand(16, 3, 224, 224), torch.randint(10, (16,)), [*body.parameters(), *head.parameters()])


def minilm() -> Step:
    "A BERT of the size of all-MiniLM-L6-v2, 22.7 million weights, on 32 sequences of 64 tokens."
    from transformers import BertConfig, BertModel
    model, head = BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536), add_pooling_layer=False), nn.Linear(384, 2)
    tokens, labels = torch.randint(1000, 30000, (32, 64)), torch.randint(2, (32,))
    return Step(lambda tokens: model(tokens).last_hidden_state.mean(1), head, tokens, labels, [*model.parameters(), *head.parameters()])
