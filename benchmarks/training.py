"""How fast the loop is: the same fine-tuning by `fit`, by transformers' `Trainer` and by the loop that everybody writes."""
import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ftlearn.data import Task, load_task
from ftlearn.training import fit, freeze_statistics, warmup_cosine

from .models import glyph_cnn
from .timing import Row, interleaved, table

STEPS, BATCH, LR = 100, 32, 3e-4


def with_fit(task: Task) -> None:
    fit(freeze_statistics(glyph_cnn()), task.train, steps=STEPS, batch_size=BATCH, lr=LR)


def with_plain_loop(task: Task) -> None:
    model = freeze_statistics(glyph_cnn()).train()
    loader = DataLoader(TensorDataset(task.train.inputs, task.train.labels), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = warmup_cosine(optimizer, STEPS)
    step = 0
    while step < STEPS:
        for images, labels in loader:
            if step == STEPS: break
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1


class WithLoss(nn.Module):
    "What `Trainer` wants: a model that computes its loss."
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images, labels):
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def with_trainer(task: Task) -> None:
    from transformers import Trainer, TrainingArguments
    rows = [{"images": image, "labels": label} for image, label in zip(task.train.inputs, task.train.labels)]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR, weight_decay=0.01, warmup_steps=STEPS // 10,
                                    lr_scheduler_type="cosine", report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True)
        Trainer(WithLoss(freeze_statistics(glyph_cnn())), options, train_dataset=rows).train()


def measure() -> list[Row]:
    task = load_task("digits")
    ways = {"ftlearn.fit": with_fit, "a plain PyTorch loop": with_plain_loop, "transformers' Trainer": with_trainer}
    seconds = interleaved({name: lambda way=way: way(task) for name, way in ways.items()}, rounds=7, warmup=1)
    return [Row(f"fine-tuning the glyph CNN by {name}", f"{STEPS * BATCH / s:,.0f} examples/s, {seconds['a plain PyTorch loop'] / s:.2f} × the plain loop")
            for name, s in seconds.items()]


if __name__ == "__main__": print(table(measure()))
