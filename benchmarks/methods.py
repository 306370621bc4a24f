"""Three public data sets and all strategies: how one method is measured on one draw. `python -m benchmarks.results` measures them all."""
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ftlearn.adaptation.freezing import BiasesAndNorms, DiscriminativeRates, GradualUnfreezing, PairsThenProbe, PartialFreezing
from ftlearn.adaptation.proximal import L2SP
from ftlearn.core import set_seed
from ftlearn.data import Split, Task, load_task
from ftlearn.training import entity_f1
from ftlearn.transfer.images import pixel_baseline
from ftlearn.transfer.model import FullFineTuning, LinearProbe, Strategy, TransferModel, finetune, minilm
from ftlearn.transfer.text import bag_of_words

from .text import with_trainer

VALIDATION = 256           # rows at most, and no more than there are to train on: nobody with 64 labels has a thousand to choose by
LOOKS = 5                  # at the validation split, in each run


@dataclass(frozen=True)
class Study:
    "A data set, a backbone, and how long it is trained at each budget."
    task: str                         # for `load_task`
    backbone: str
    metric: str                       # what `Result.test` is asked for
    steps: dict[int, int]             # labels a class (sentences, where each word has a label) → steps
    batch_size: int
    test_rows: int
    rates: tuple[float, ...]          # of the backbone; each method has as many to choose from
    head_lr: float                    # of a new head, while the backbone learns too
    size: int | None = None           # of images, in pixels

    def draw(self, shots: int, seed: int) -> Task:
        "A few rows to train on, no more to validate by, and the same test rows for all draws."
        task = load_task(self.task)
        few = task.few_shot(shots, seed)
        a_class = 1 if task.kind == "token-classification" else task.num_labels
        def some(split: Split, rows: int) -> Split: return replace(task, train=split).few_shot(rows // a_class, 0).train
        return replace(few, validation=some(task.validation, min(VALIDATION, len(few.train))), test=some(task.test, self.test_rows))

    def model(self, few: Task, seed: int, pretrained: bool) -> TransferModel:
        "The backbone with a new head, pretrained or fresh."
        if not pretrained: model = TransferModel.from_scratch(self.backbone, few, seed=seed)
        else: model = TransferModel.from_pretrained(self.backbone, few, weights=self.weights, seed=seed)
        if self.size: model.prepare.size = self.size
        return model

    @property
    def weights(self) -> Path | None:
        "A copy of torchvision's weights in $FTLEARN_DATA; where there is none, torchvision fetches them."
        file = Path(os.environ.get("FTLEARN_DATA", ""))/"squeezenet_imagenet"/f"{self.backbone}.npz"
        return file if file.exists() else None


STUDIES = {study.task: study for study in (
    Study("rotten_tomatoes", "all-MiniLM-L6-v2", "accuracy", {32: 48, 256: 128}, 16, 1000, (5e-5, 1e-4, 2e-4), 1e-3),
    Study("fashion_mnist", "squeezenet1_0", "accuracy", {5: 60, 20: 60, 100: 120}, 32, 1000, (1e-4, 3e-4, 1e-3), 1e-2, size=64),
    Study("wnut17", "all-MiniLM-L6-v2", "f1", {200: 75, 1000: 150}, 16, 600, (1e-4, 2e-4, 5e-4), 1e-3))}


@dataclass(frozen=True)
class Method:
    "A way to learn from a draw."
    run: Callable[..., float]         # (study, few, learning rate, steps, seed, split) → score in %
    rates: Callable[[Study], tuple] = lambda study: ()      # to choose from on the practice draw; without any there is no choice
    studies: tuple[str, ...] = tuple(STUDIES)
    most: float = float("inf")        # labels a class at which it is measured, where more would take too long


def adapted(strategy: Callable[[float, float, int], Strategy],       # (learning rate, that of the head, steps) → strategy
            pretrained: bool = True, longer: int = 1, probe_first: bool = False) -> Callable[..., float]:
    "A method that fine-tunes by a strategy of the course."
    def run(study: Study, few: Task, lr: float, steps: int, seed: int, split: str) -> float:
        model, steps = study.model(few, seed, pretrained), longer * steps
        if probe_first: finetune(model, few, LinearProbe(head_lr=study.head_lr), steps=5 * steps, batch_size=study.batch_size, seed=seed)
        result = finetune(model, few, strategy(lr, study.head_lr, steps), steps=steps, batch_size=study.batch_size, seed=seed, measure_every=-(-steps // LOOKS))
        return 100 * (result.test if split == "test" else result.validation)[study.metric]
    return run


def pairs(longer: int = 1) -> Callable[..., float]:
    "Pairs of a batch without a head, as many rows as the other methods see, or so many times as many; then a probe."
    def run(study: Study, few: Task, lr: float, steps: int, seed: int, split: str) -> float:
        strategy = PairsThenProbe(lr=lr, head_lr=study.head_lr, pair_steps=longer * steps * study.batch_size // 32)
        return adapted(lambda *_: strategy, longer=5)(study, few, lr, steps, seed, split)
    return run


def cheap(study: Study, few: Task, lr: None, steps: int, seed: int, split: str) -> float:
    "What needs no network: a bag of words, pixels, features of words."
    return {"text-classification": lambda: 100 * bag_of_words(few), "image-classification": lambda: 100 * pixel_baseline(few),
            "token-classification": lambda: word_features(few)}[few.kind]()


def word_features(task: Task, strengths=(0.3, 1.0, 3.0, 10.0, 30.0)) -> float:
    "Test F1 in % of logistic regression on each word, its ending and its shape, and those of its neighbours; its inverse penalty chosen on the validation split."
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    def looks(word): return {"word": word.lower(), "ending": word[-3:].lower(), "first": word[:1], "title": word.istitle(), "upper": word.isupper(), "digit": any(map(str.isdigit, word))}
    def features(words): return [{f"{place} {key}": value for place in (-1, 0, 1) if 0 <= i + place < len(words) for key, value in looks(words[i + place]).items()} for i in range(len(words))]
    names = task.label_names
    def f1(model, split): return entity_f1([list(model.predict(features(words))) for words in split.inputs], [[names[tag] for tag in tags] for tags in split.labels])
    x, y = [f for words in task.train.inputs for f in features(words)], [names[tag] for tags in task.train.labels for tag in tags]
    models = [make_pipeline(DictVectorizer(), LogisticRegression(C=c, max_iter=500)).fit(x, y) for c in strengths]
    return 100 * f1(max(models, key=lambda model: f1(model, task.validation)), task.test)


def trainer(study: Study, few: Task, lr: float | None, steps: int, seed: int, split: str) -> float:
    "transformers' `Trainer` in bfloat16, as ours: with its defaults (three epochs, batches of eight, 5e-5), or with a learning rate, as many steps as ours."
    options = {"learning_rate": lr, "max_steps": steps, "per_device_train_batch_size": study.batch_size} if lr else {}
    learner, rows = with_trainer(few.train, seed=seed, per_device_eval_batch_size=32, bf16=True, **options)
    measured = getattr(few, split)
    return 100 * float((learner.predict(rows(measured)).predictions.argmax(1) == measured.labels.numpy()).mean())


SETFIT_PAIRS = 20          # pairs for each text, of its class and of the other as many, as in the paper; the default at 256 labels a class would be eight thousand steps


def setfit(study: Study, few: Task, lr: None, steps: int, seed: int, split: str) -> float:
    "SetFit (Tunstall et al. 2022) with its defaults, but for the number of pairs at 256 labels a class, which is the paper's; in bfloat16, as ours."
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    set_seed(seed)
    model = SetFitModel.from_pretrained(str(minilm()))
    rows = Dataset.from_dict({"text": list(few.train.inputs), "label": few.train.labels.tolist()})
    pairs = {"num_iterations": SETFIT_PAIRS} if len(few.train) > 100 else {}
    with tempfile.TemporaryDirectory() as folder, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):      # else all steps would see the first step's weights
        arguments = TrainingArguments(output_dir=folder, num_epochs=1, seed=seed, report_to="none", **pairs)
        Trainer(model, arguments, train_dataset=rows).train()
    return 100 * float((model.predict(list(few.test.inputs), as_numpy=True) == few.test.labels.numpy()).mean())


def of_backbone(factor: float) -> Callable[[Study], tuple]:
    "The study's learning rates, times a factor."
    return lambda study: tuple(round(factor * lr, 10) for lr in study.rates)


METHODS = {
    "logistic regression": Method(cheap),
    "from scratch": Method(adapted(lambda lr, head, steps: FullFineTuning(lr=lr), pretrained=False, longer=2), of_backbone(3)),
    "linear probe": Method(adapted(lambda lr, head, steps: LinearProbe(head_lr=lr), longer=5), lambda study: (1e-3, 3e-3, 1e-2)),
    "full fine-tuning": Method(adapted(lambda lr, head, steps: FullFineTuning(lr=lr, head_lr=head)), of_backbone(1)),
    "last block": Method(adapted(lambda lr, head, steps: PartialFreezing(1, lr=lr, head_lr=head)), of_backbone(3)),
    "biases and norms": Method(adapted(lambda lr, head, steps: BiasesAndNorms(lr=lr, head_lr=head)), of_backbone(10)),
    "discriminative rates": Method(adapted(lambda lr, head, steps: DiscriminativeRates(lr=lr, head_lr=head)), of_backbone(2)),
    "gradual unfreezing": Method(adapted(lambda lr, head, steps: GradualUnfreezing(lr=lr, head_lr=head, every=max(1, steps // 16))), of_backbone(1)),
    "probe, then fine-tuning": Method(adapted(lambda lr, head, steps: FullFineTuning(lr=lr, head_lr=head), probe_first=True), of_backbone(1)),
    "pairs, then a probe": Method(pairs(), of_backbone(1), ("rotten_tomatoes", "fashion_mnist")),
    "pairs, four times as long": Method(pairs(longer=4), of_backbone(1), ("rotten_tomatoes",), most=32),
    "full fine-tuning, four times as long": Method(adapted(lambda lr, head, steps: FullFineTuning(lr=lr, head_lr=head), longer=4), of_backbone(1), ("rotten_tomatoes",), most=32),
    "L2-SP": Method(adapted(lambda lr, head, steps: L2SP(strength=1 / (lr * steps), lr=lr, head_lr=head)), of_backbone(1)),      # over the whole run the pull adds up to about a half
    "Trainer, defaults": Method(trainer, studies=("rotten_tomatoes",)),
    "Trainer, tuned": Method(trainer, of_backbone(1), ("rotten_tomatoes",)),
    "SetFit": Method(setfit, studies=("rotten_tomatoes",) if importlib.util.find_spec("setfit") else ())}


def score(study: str, method: str, shots: int, lr: float | None, seed: int, split: str) -> float:
    "One method on one draw, in %: F1, or accuracy."
    chosen = STUDIES[study]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # that a regression has not converged, that a tweet was cut
        return round(METHODS[method].run(chosen, chosen.draw(shots, seed), lr, chosen.steps[shots], seed, split), 1)
