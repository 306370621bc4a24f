"""all-MiniLM-L6-v2 on Rotten Tomatoes: examples per second of fine-tuning, probing and predicting, beside transformers' `Trainer` and `pipeline`.

    FTLEARN_DATA=... python -m benchmarks.text

`Trainer` and `pipeline` have their defaults. Without a copy of Rotten Tomatoes in $FTLEARN_DATA and without a network, the
reviews of the course take its place. Needs `pip install ftlearn[models]`."""
import tempfile
import time

from ftlearn.core import set_seed
from ftlearn.data import load_task
from ftlearn.training import encoded, fit, predict
from ftlearn.transfer.model import FullFineTuning, LinearProbe, TransferModel, finetune, minilm, quiet_transformers

from .timing import Row, table

ROWS, ROUNDS = 384, 3
FULL, PROBE, PREDICT = 1.8, 10, 1.5          # times as fast, at least


def task_of():
    "Rotten Tomatoes, or what there is."
    try: return load_task("rotten_tomatoes")
    except ConnectionError: return load_task("reviews")


def with_trainer(split, frozen: bool = False, seed: int = 42, **options):
    "MiniLM, trained by transformers' `Trainer` with its defaults and these options; returns the trainer, and its rows for a split."
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
    set_seed(seed)
    with quiet_transformers():
        tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    model.base_model.requires_grad_(not frozen)
    def rows(split): return [tokenizer(text, truncation=True) | {"label": int(label)} for text, label in zip(split.inputs, split.labels)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=seed, **options)
        trainer = Trainer(model, arguments, train_dataset=rows(split), data_collator=DataCollatorWithPadding(tokenizer))
        trainer.train()
    return trainer, rows


def with_pipeline(model, texts) -> float:
    from transformers import pipeline
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        classifier = pipeline("text-classification", model=folder)
    start = time.perf_counter()
    classifier(texts)
    return time.perf_counter() - start


def fastest(*ways) -> list[float]:
    "Seconds of each way, the fastest of some rounds in turn."
    seconds = [[] for _ in ways]
    for _ in range(ROUNDS):
        for found, way in zip(seconds, ways):
            start = time.perf_counter()
            own = way()
            found.append(own if isinstance(own, float) else time.perf_counter() - start)
    return [min(found) for found in seconds]


def measure() -> list[Row]:
    task = task_of().few_shot(ROWS // 2, seed=0)
    make = lambda: TransferModel.from_pretrained("all-MiniLM-L6-v2", task)
    set_seed(0)

    def full():
        model, strategy = make(), FullFineTuning()
        strategy.prepare(model)
        fit(model, encoded(model, task.train), epochs=1, batch_size=16, optimizer=strategy.optimizer(model))

    ours, theirs = fastest(full, lambda: with_trainer(task.train, num_train_epochs=1))
    rows = [Row(f"fine-tuning MiniLM on {task.name}", f"{ROWS / ours:.0f} examples/s, {theirs / ours:.1f} × transformers' Trainer", f"≥ {FULL} ×", theirs / ours >= FULL)]
    small = type(task)(task.name, task.train, task.train.select(range(8)), task.test, task.label_names, task.kind)     # Trainer validates on nothing
    ours, theirs = fastest(lambda: finetune(make(), small, LinearProbe(), epochs=5), lambda: with_trainer(task.train, frozen=True, num_train_epochs=5))
    rows.append(Row("a linear probe, five epochs", f"{5 * ROWS / ours:.0f} examples/s, {theirs / ours:.1f} × Trainer with a frozen backbone", f"≥ {PROBE} ×", theirs / ours >= PROBE))
    model = make().eval()
    ours, theirs = fastest(lambda: predict(model, task.train), lambda: with_pipeline(model, list(task.train.inputs)))
    rows.append(Row("predicting", f"{ROWS / ours:.0f} texts/s, {theirs / ours:.1f} × transformers' pipeline", f"≥ {PREDICT} ×", theirs / ours >= PREDICT))
    return rows


if __name__ == "__main__": print(table(measure()))
