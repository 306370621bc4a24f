"""The objectives: parity with references, what may be seen, resuming, saving, and what is refused."""
import math
import time

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from transformers import (AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM, GPT2Config, GPT2LMHeadModel,
                          LlamaConfig, LlamaForCausalLM, ModernBertConfig, ModernBertForMaskedLM, RobertaConfig, RobertaForMaskedLM)

from ftlearn.data import Affine, Task, load_corpus, load_task, train_tokenizer
from ftlearn.pretraining.autoencoders import Autoencoder, Denoising, MaskedPatches, Reconstruction
from ftlearn.pretraining.causal_lm import (CausalLM, can_compile, linear_cross_entropy, load_language_model, loss_inputs, positions_of, pretrained_on_docs,
                                           throughout, token_scores, use_plain_attention)
from ftlearn.pretraining.images import SimCLR, contrastive_loss
from ftlearn.pretraining.masked_lm import MaskedLM, corrupt
from ftlearn.pretraining.word_vectors import Contexts, GloVe, SkipGram, Vocabulary, WordVectors, cooccurrence
from ftlearn.training import fit, pretrain, read_weights
from ftlearn.transfer.model import TransferModel

from conftest import patterns

WORDS = "the quick brown fox jumps over a lazy dog while one small cat sleeps near that old stone wall every day".split()
SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path): monkeypatch.setenv("FTLEARN_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/"text.txt").write_text("\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(600)))
    return tmp_path/"text.txt"


def masked(**options): return MaskedLM(length=16, vocab_size=80, width=32, layers=1, batch_size=8, **options)
def causal(**options): return CausalLM(length=16, vocab_size=300, width=32, layers=1, batch_size=8, **options)


# --- The loss --------------------------------------------------------------------------------------------------------

@given(rows=st.integers(1, 40), classes=st.integers(2, 30), width=st.integers(1, 9), at_once=st.integers(1, 50), biased=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_loss_in_pieces_is_cross_entropy(rows, classes, width, at_once, biased, seed):
    torch.manual_seed(seed)
    h, w = torch.randn(rows, width, requires_grad=True), torch.randn(classes, width, requires_grad=True)
    b = torch.randn(classes, requires_grad=True) if biased else None
    y = torch.randint(classes, (rows,))
    inputs = [h, w] + ([b] if biased else [])
    ours, theirs = linear_cross_entropy(h, w, b, y, at_once), F.cross_entropy(F.linear(h, w, b), y)
    torch.testing.assert_close(ours, theirs)
    for a, c in zip(torch.autograd.grad(2 * ours, inputs), torch.autograd.grad(2 * theirs, inputs)): torch.testing.assert_close(a, c, atol=1e-6, rtol=1e-4)
    losses, right = token_scores(h.detach(), w.detach(), None if b is None else b.detach(), y, at_once)
    torch.testing.assert_close(losses.mean(), theirs.detach())
    assert right.tolist() == (F.linear(h, w, b).argmax(1) == y).tolist()


def test_loss_in_pieces_of_bfloat16_adds_them_up():
    "Guards against a piece that is lost on its way to the gradient in float32."
    torch.manual_seed(0)
    h, w, y = torch.randn(50, 16, requires_grad=True), torch.randn(30, 16, requires_grad=True), torch.randint(30, (50,))
    with torch.autocast("cpu", torch.bfloat16): ours = linear_cross_entropy(h, w, None, y, 20)
    theirs = F.cross_entropy(F.linear(h, w), y)
    for a, b in zip(torch.autograd.grad(ours, [h, w]), torch.autograd.grad(theirs, [h, w])): assert (a - b).norm() < 0.03 * b.norm()


def test_many_pieces_of_bfloat16_add_up_too():
    "Guards against one sum in bfloat16: it stands still once what is added is less than 1/256 of it."
    torch.manual_seed(0)
    h, w, y = (1 + torch.randn(4000, 16)).requires_grad_(), torch.zeros(30, 16, requires_grad=True), torch.zeros(4000, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16): ours = linear_cross_entropy(h, w, None, y, rows=4)
    a, b = torch.autograd.grad(ours, w)[0], torch.autograd.grad(F.cross_entropy(h @ w.T, y), w)[0]
    assert (a - b).norm() < 0.03 * b.norm()


def test_loss_in_pieces_survives_hopeless_targets():
    h, w = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = linear_cross_entropy(h, w, None, torch.tensor([1]))
    assert math.isfinite(loss.item()) and loss > 80 and torch.autograd.grad(loss, h)[0].isfinite().all()


MASKED = {"bert": lambda: BertForMaskedLM(BertConfig(**SMALL)), "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL, pad_token_id=0)),
          "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=90, dim=32, n_layers=2, n_heads=2, hidden_dim=48)),
          "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2))}
CAUSAL = {"gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)),
          "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1))}


@pytest.mark.parametrize("name", [*MASKED, *CAUSAL])
def test_the_loss_is_that_of_transformers(name):
    torch.manual_seed(0)
    model = (MASKED | CAUSAL)[name]().eval()
    tokens = torch.randint(3, 90, (3, 10))
    if name in CAUSAL:
        where = torch.ones_like(tokens, dtype=torch.bool); where[:, -1] = False
        labels, targets = tokens, tokens[:, 1:].flatten()
    else:
        where = torch.rand(3, 10) < 0.4
        labels, targets = tokens.masked_fill(~where, -100), tokens[where]
    output = model.get_output_embeddings()
    ours = linear_cross_entropy(loss_inputs(model, where, input_ids=tokens), output.weight, output.bias, targets)
    torch.testing.assert_close(ours, model(input_ids=tokens, labels=labels).loss)
    assert model(input_ids=tokens).logits.shape == (3, 10, 90)                # the hooks are gone


@pytest.mark.parametrize("name", [*MASKED, *CAUSAL])
def test_a_step_in_bfloat16_gives_each_weight_its_gradient_in_float32(name):
    "Guards against weights that are left out, tied ones above all, and against gradients that end at the copies."
    torch.manual_seed(0)
    model = (MASKED | CAUSAL)[name]().eval()
    tokens = torch.randint(3, 90, (8, 24))
    def loss(model, tokens): return F.cross_entropy(model(input_ids=tokens).logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    def gradients(of):
        model.zero_grad()
        of.backward()
        return {weight: w.grad.clone() for weight, w in model.named_parameters() if w.grad is not None}
    exact, before = gradients(loss(model, tokens)), {weight: w.clone() for weight, w in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(throughout(loss, model, tokens))
        assert model(input_ids=tokens).logits.isfinite().all()                # autocast, and the model's own weights, are back
    assert rounded.keys() == exact.keys()
    for weight, g in exact.items():
        assert rounded[weight].dtype == torch.float32 and (rounded[weight] - g).norm() <= 0.05 * g.norm() + 1e-4, weight
    assert all(torch.equal(w, before[weight]) for weight, w in model.named_parameters())
    assert torch.equal(throughout(loss, model, tokens), loss(model, tokens))  # without autocast it is the function itself


def test_small_steps_in_bfloat16_are_not_lost(text, monkeypatch):
    "Guards against weights that are kept in two bytes: a step of a thousandth of theirs would be rounded away."
    monkeypatch.setattr("ftlearn.training.autocast_dtype", lambda device=None: torch.bfloat16)
    monkeypatch.setattr("ftlearn.training.MIXED_PRECISION_FROM", 0)
    objective = causal()
    model, train, _ = objective.prepare(text)
    before = {name: w.clone() for name, w in model.named_parameters()}
    fit(model, train, steps=3, lr=1e-5, warmup=0.0, batch_size=8, objective=objective, measure=objective.measure)
    norms = {name: w for name, w in model.named_parameters() if name.endswith("ln_1.weight")}
    assert norms and all(w.dtype == torch.float32 and (w != before[name]).float().mean() > 0.9 for name, w in norms.items())


@pytest.mark.parametrize("name", ["modernbert", "gpt2", "llama", "bert"])
def test_plain_attention_is_attention_with_padding_too(name):
    torch.manual_seed(0)
    model = (MASKED | CAUSAL)[name]().eval()
    tokens, mask = torch.randint(3, 90, (3, 10)), torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0; mask[2, 3:] = 0
    with torch.no_grad():
        before = model(input_ids=tokens, attention_mask=mask).logits
        after = use_plain_attention(model)(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(before[mask.bool()], after[mask.bool()], atol=1e-5, rtol=1e-4)


# --- Corruption ------------------------------------------------------------------------------------------------------

@given(rate=st.floats(0.05, 0.6), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_corruption_is_80_10_10(rate, seed):
    from scipy.stats import chisquare
    tokenizer = test_corruption_is_80_10_10.tokenizer
    tokens = torch.randint(len(tokenizer), (200, 300), generator=torch.Generator().manual_seed(seed))
    corrupted, chosen = corrupt(tokens, tokenizer, rate, torch.Generator().manual_seed(seed + 1))
    special = torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))
    assert not chosen[special].any() and torch.equal(corrupted[~chosen], tokens[~chosen])
    n, v = chosen.sum().item(), len(tokenizer)
    seen = [(corrupted == tokenizer.mask_token_id)[chosen].sum().item(), (corrupted == tokens)[chosen].sum().item()]
    expected = [n * (0.8 + 0.1 / v), n * (0.1 + 0.1 / v)]
    assert chisquare([*seen, n - sum(seen)], [*expected, n - sum(expected)]).pvalue > 1e-5
    assert abs(n / (~special).sum().item() - rate) < 0.02


test_corruption_is_80_10_10.tokenizer = train_tokenizer([" ".join(WORDS) * 20], 60)


def test_masks_are_dynamic():
    tokenizer = test_corruption_is_80_10_10.tokenizer
    tokens = torch.randint(10, 50, (20, 50))
    torch.manual_seed(0)
    assert not torch.equal(corrupt(tokens, tokenizer)[1], corrupt(tokens, tokenizer)[1])


def test_a_causal_model_cannot_see_the_future(text):
    objective = causal()
    model, train, _ = objective.prepare(text)
    tokens = train[[0]]
    changed = tokens.clone(); changed[0, 8:] = 5
    with torch.no_grad(): a, b = (model(input_ids=t).logits[0, :8] for t in (tokens, changed))
    assert torch.equal(a, b)


# --- pretrain --------------------------------------------------------------------------------------------------------

class Cut(Exception): pass


def weights(model): return torch.cat([w.detach().flatten() for w in model.parameters()])


def cut(objective, at=8):
    "The same objective, with a loss that fails at training step `at`, once"
    kind, calls = type(objective), iter(range(10**6))
    class Interrupted(kind):
        name = kind.__name__
        def __call__(self, model, *batch):
            if model.training and next(calls) == at: raise Cut
            return kind.__call__(self, model, *batch)
    objective.__class__ = Interrupted
    return objective


IMAGES = [Denoising, SimCLR]


def images() -> Task: return Task("patterns", patterns(60, seed=1), patterns(12, seed=2), patterns(12, seed=3), ["a", "b", "c"])


@pytest.mark.parametrize("make", [masked, causal, lambda: SkipGram(width=8, min_count=1), lambda: GloVe(width=8, min_count=1), *IMAGES])
def test_interrupted_pretraining_resumes_to_the_same_weights(text, tmp_path, make):
    source = images() if make in IMAGES else text
    whole = pretrain(make(), source, steps=12, measure_every=3)
    with pytest.raises(Cut): pretrain(cut(make()), source, folder=tmp_path/"out", steps=12, measure_every=3)
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["checkpoint.pt"]              # and no half-written model
    resumed = pretrain(make(), source, folder=tmp_path/"out", steps=12, measure_every=3)
    assert torch.equal(weights(whole.model), weights(resumed.model)) and len(resumed.history.losses) == 12
    assert not (tmp_path/"out"/"checkpoint.pt").exists() and "README.md" in {p.name for p in (tmp_path/"out").iterdir()}


def refused_after_a_cut(folder, first, second, **others):
    "Cut the first run, and start the second in its folder; the error"
    (objective, source), (other, other_source) = first, second
    with pytest.raises(Cut): pretrain(cut(objective), source, folder=folder, steps=12, measure_every=3)
    with pytest.raises(ValueError, match="belongs to another run") as refusal: pretrain(other, other_source, folder=folder, steps=12, measure_every=3, **others)
    return str(refusal.value)


def test_a_run_is_not_continued_with_another_objective(text, tmp_path):
    "Guards against a model of the same shape that was taught two things, and whose card knows of one."
    letters = images()
    assert "MaskedPatches" in refused_after_a_cut(tmp_path/"images", (Denoising(), letters), (MaskedPatches(), letters))
    assert "noise=0.1" in refused_after_a_cut(tmp_path/"noise", (Denoising(noise=0.1), letters), (Denoising(), letters))
    assert "rate=0.15" in refused_after_a_cut(tmp_path/"rate", (masked(rate=0.15), text), (masked(rate=0.4), text))
    assert "seed=1" in refused_after_a_cut(tmp_path/"words", (SkipGram(width=8, min_count=1), text), (SkipGram(width=8, min_count=1, seed=1), text))
    views = [SimCLR(augment=Affine(degrees=degrees)) for degrees in (5, 50)]
    assert "degrees=50" in refused_after_a_cut(tmp_path/"views", (views[0], letters), (views[1], letters))


def test_a_run_is_not_continued_with_other_data(text, tmp_path):
    "Guards against a text with as many rows, and against the same task drawn anew."
    (tmp_path/"other.txt").write_text(text.read_text().replace("fox", "dog"))
    tokenizer = test_corruption_is_80_10_10.tokenizer
    found = refused_after_a_cut(tmp_path/"text", (masked(tokenizer=tokenizer), text), (masked(tokenizer=tokenizer), tmp_path/"other.txt"))
    assert "data was 'text.txt-" in found and "rows" not in found
    one, other = (images().few_shot(5, seed) for seed in (0, 1))
    assert "data was 'patterns-" in refused_after_a_cut(tmp_path/"images", (Denoising(), one), (Denoising(), other))


def test_a_run_is_not_continued_from_another_model(text, tmp_path):
    for name, seed in (("a", 0), ("b", 1)): pretrain(masked(), text, folder=tmp_path/name, steps=2, seed=seed)
    with pytest.raises(Cut): pretrain(cut(masked()), text, model=tmp_path/"a", folder=tmp_path/"out", steps=12, measure_every=3)
    with pytest.raises(ValueError, match="belongs to another run.*continued from"): pretrain(masked(), text, model=tmp_path/"b", folder=tmp_path/"out", steps=12, measure_every=3)


def test_the_models_of_the_course_resume_in_the_cache(text, tmp_path):
    "Guards against minutes of pretraining that are lost to an interruption, and against a second pretraining."
    corpus = load_corpus(text)
    with pytest.raises(Cut): pretrained_on_docs("small", cut(masked(), at=20), steps=30, corpus=corpus)
    assert [p.suffix for p in (tmp_path/"cache"/"unfinished").iterdir()] == [".pt"] and not list((tmp_path/"cache"/"models").glob("small-*"))
    folder = pretrained_on_docs("small", cut(masked(), at=20), steps=30, corpus=corpus)      # steps 18 to 29 are left: it is not cut again
    assert "model.safetensors" in {p.name for p in folder.iterdir()} and not list((tmp_path/"cache"/"unfinished").iterdir())
    whole = pretrain(masked(), corpus, steps=30).model
    assert torch.equal(weights(AutoModelForMaskedLM.from_pretrained(folder)), weights(whole))
    assert pretrained_on_docs("small", cut(masked(), at=0), steps=30, corpus=corpus) == folder


@pytest.mark.parametrize("make", [masked, causal])
def test_compiled_layers_learn_what_the_others_do(text, make, monkeypatch, tmp_path):
    from torch._dynamo.utils import counters
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path/"inductor"))
    plain, counted = pretrain(make(), text, steps=6, measure_every=3), counters["stats"]["unique_graphs"]
    assert pretrain(make(), text, steps=6, measure_every=3).history.losses == plain.history.losses and counters["stats"]["unique_graphs"] == counted     # so short a run does not compile
    compiled = pretrain(make(compiled=True), text, steps=6, measure_every=3)
    assert counters["stats"]["unique_graphs"] > counted
    np.testing.assert_allclose(compiled.history.losses, plain.history.losses, rtol=0.01)
    assert not any("forward" in vars(part) for part in compiled.model.modules())


def test_without_a_compiler_the_layers_stay_as_they_are(text, monkeypatch):
    plain = pretrain(masked(), text, steps=3)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        torch.compiler.reset(), can_compile.cache_clear()
        assert not can_compile()
        assert pretrain(masked(compiled=True), text, steps=3).history.losses == plain.history.losses
        monkeypatch.setattr("ftlearn.pretraining.causal_lm.can_compile", lambda: True)           # as if only the layers were too much for it
        assert pretrain(masked(compiled=True), text, steps=3).history.losses == plain.history.losses
    torch.compiler.reset(), can_compile.cache_clear()


def test_a_failed_write_leaves_nothing_behind(text, tmp_path):
    class Full(MaskedLM):
        def save(self, model, folder):
            (folder/"model.safetensors").write_bytes(b"half")
            raise OSError("no space left on device")
    with pytest.raises(OSError): pretrain(Full(length=16, vocab_size=80, width=32, layers=1, batch_size=8), text, folder=tmp_path/"out", steps=2)
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("make, auto, task", [(masked, AutoModelForMaskedLM, "fill-mask"), (causal, AutoModelForCausalLM, "text-generation")])
def test_models_load_as_the_ecosystems_do(text, tmp_path, make, auto, task):
    from transformers import pipeline
    result = pretrain(make(), text, folder=tmp_path/"model", steps=3)
    loaded = auto.from_pretrained(tmp_path/"model").eval()
    tokens = torch.randint(5, 70, (2, 8))
    with torch.no_grad(): torch.testing.assert_close(loaded(input_ids=tokens).logits, result.model(input_ids=tokens).logits, atol=1e-5, rtol=1e-4)
    run = pipeline(task, model=str(tmp_path/"model"), device="cpu")
    assert run("the quick [MASK] fox" if task == "fill-mask" else "the quick", **({} if task == "fill-mask" else {"max_new_tokens": 3}))
    card = (tmp_path/"model"/"README.md").read_text()
    assert "text.txt" in card and "seed" in card and f"{sum(w.numel() for w in result.model.parameters()):,} weights" in card


def test_going_on_starts_from_the_checkpoint(text, tmp_path):
    first = pretrain(masked(), text, folder=tmp_path/"first", steps=150)
    second = pretrain(masked(), text, model=tmp_path/"first", folder=tmp_path/"second", steps=5)
    assert abs(second.history.losses[0] - first.validation["loss"]) < 0.7 < math.log(80) - second.history.losses[0]
    assert (tmp_path/"second"/"tokenizer.json").read_bytes() == (tmp_path/"first"/"tokenizer.json").read_bytes()
    third = pretrain(masked(tokenizer=test_corruption_is_80_10_10.tokenizer), text, model=BertForMaskedLM(BertConfig(**SMALL)), steps=2)
    assert len(third.history.losses) == 2


def test_a_causal_model_goes_on_from_its_checkpoint(text, tmp_path):
    first = pretrain(causal(), text, folder=tmp_path/"first", steps=60)
    second = pretrain(causal(), text, model=tmp_path/"first", folder=tmp_path/"second", steps=5)
    assert abs(second.history.losses[0] - first.validation["loss"]) < 0.7 < math.log(300) - second.history.losses[0]
    assert (tmp_path/"second"/"tokenizer.json").read_bytes() == (tmp_path/"first"/"tokenizer.json").read_bytes()
    assert f"**continued from**: {tmp_path/'first'}" in (tmp_path/"second"/"README.md").read_text()


def test_each_text_gets_a_tokenizer_of_its_own(text, tmp_path):
    "Guards against an objective that is used twice and reads the second text with the tokenizer of the first."
    (tmp_path/"other.txt").write_text(text.read_text().upper().translate(str.maketrans("AEIOU", "ÄÉÎÖÜ")))
    objective, given = masked(), test_corruption_is_80_10_10.tokenizer
    vocabularies = [(objective.prepare(source), objective.tokenizer.get_vocab())[1] for source in (text, tmp_path/"other.txt", text)]
    assert vocabularies[0] != vocabularies[1] and vocabularies[0] == vocabularies[2]
    objective = masked(tokenizer=given)
    for source in (text, tmp_path/"other.txt"):
        objective.prepare(source)
        assert objective.tokenizer is given


def test_a_tokenizer_beside_a_name_is_refused(text, tmp_path):
    "Guards against an argument that is ignored: the checkpoint brings a tokenizer."
    pretrain(masked(), text, folder=tmp_path/"model", steps=2)
    with pytest.raises(ValueError, match="brings its own tokenizer"): pretrain(masked(tokenizer=test_corruption_is_80_10_10.tokenizer), text, model=tmp_path/"model", steps=2)
    objective = masked()
    pretrain(objective, text, model=tmp_path/"model", steps=2)
    pretrain(objective, text, model=tmp_path/"model", steps=2)                                   # what the checkpoint brought does not count as given
    with pytest.raises(ValueError, match="give the tokenizer"): objective.prepare(text, BertForMaskedLM(BertConfig(**SMALL)))


@pytest.mark.parametrize("make, words", [(lambda: MaskedLM(rate=0), "rate=0"), (lambda: MaskedLM(rate=1.0), "rate=1.0"), (lambda: MaskedLM(rate=float("nan")), "rate=nan"),
                                         (lambda: MaskedLM(length=0), "length=0"), (lambda: CausalLM(length=1), "length=1")])
def test_settings_that_leave_nothing_to_learn_are_refused(make, words):
    "Guards against a loss of zero, and against measurements that are not numbers."
    with pytest.raises(ValueError, match=words): make()


@pytest.mark.parametrize("name", [*MASKED, *CAUSAL])
def test_blocks_longer_than_the_model_are_refused(text, name):
    "Guards against an IndexError from deep inside, also where positions begin behind the padding token."
    config, tokenizer = (MASKED | CAUSAL)[name]().config, test_corruption_is_80_10_10.tokenizer
    config.max_position_embeddings = 20
    model = (AutoModelForMaskedLM if name in MASKED else AutoModelForCausalLM).from_config(config)
    most = positions_of(model)
    assert most == (19 if name == "roberta" else 20)
    objective = MaskedLM if name in MASKED else CausalLM
    with pytest.raises(ValueError, match=f"length={most + 1}.*give length={most} or less"): objective(length=most + 1, tokenizer=tokenizer).prepare(text, model)
    made = objective(length=most, tokenizer=tokenizer)
    _, train, _ = made.prepare(text, model)
    assert made(model, *train.__getitems__([0, 1])).isfinite()


@pytest.mark.parametrize("make", [masked, causal, lambda: SkipGram(width=8, min_count=1), lambda: GloVe(width=8, min_count=1), lambda: Denoising(code=5), SimCLR])
def test_pretraining_goes_on_from_a_folder(text, tmp_path, make):
    source = images() if isinstance(make(), (Denoising, SimCLR)) else text
    first = pretrain(make(), source, folder=tmp_path/"first", steps=12)
    found, _, _ = make().prepare(source, tmp_path/"first")
    assert torch.equal(weights(first.model), weights(found))
    assert pretrain(make(), source, model=str(tmp_path/"first"), folder=tmp_path/"second", steps=2).history.losses[0] < 1.2 * first.history.losses[0]
    assert f"**continued from**: {tmp_path/'first'}" in (tmp_path/"second"/"README.md").read_text()


@pytest.mark.parametrize("make", [lambda: SkipGram(min_count=1), Denoising, SimCLR])
def test_what_is_no_folder_of_that_kind_is_refused(text, tmp_path, make):
    source = text if isinstance(make(), SkipGram) else images()
    with pytest.raises(FileNotFoundError, match="'docs-encoder' holds no config.json; give a folder that"): pretrain(make(), source, model="docs-encoder", steps=2)
    (tmp_path/"config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of the type 'bert', and '.*' is wanted"): pretrain(make(), source, model=tmp_path, steps=2)
    (tmp_path/"config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"): pretrain(make(), source, model=tmp_path, steps=2)


def test_an_objective_that_finds_no_model_says_so(text):
    "Guards against an AttributeError on a str."
    class Own(SkipGram):
        def prepare(self, source, model=None): return model, *super().prepare(source)[1:]
    with pytest.raises(TypeError, match="made no model of 'name'; load the model"): pretrain(Own(min_count=1), text, model="name", steps=2)


@pytest.mark.parametrize("make", [lambda: SkipGram(width=8, min_count=1), lambda: GloVe(width=8, min_count=1)])
def test_word_vectors_are_read_again_and_go_on_with_other_text(text, tmp_path, make):
    first = pretrain(make(), text, folder=tmp_path/"first", steps=12).model
    again = WordVectors.from_pretrained(tmp_path/"first")
    assert again.vocabulary.words == first.vocabulary.words and (again.vocabulary.counts == first.vocabulary.counts).all()
    assert torch.equal(again.vectors, first.vectors) and again.neighbours("fox") == first.neighbours("fox")
    (tmp_path/"other.txt").write_text("a quick fox and a lazy dog and one wholly unknown word\n" * 50)
    assert pretrain(make(), tmp_path/"other.txt", model=tmp_path/"first", steps=3).model.vocabulary.words == first.vocabulary.words
    (tmp_path/"strange.txt").write_text("nothing familiar whatsoever anywhere\n" * 50)
    with pytest.raises(ValueError, match="no word of .* is among the .* of the model"): pretrain(make(), tmp_path/"strange.txt", model=tmp_path/"first", steps=3)


@pytest.mark.parametrize("make", [Reconstruction, lambda: MaskedPatches(code=4), SimCLR])
def test_a_folder_of_images_pretraining_is_a_backbone(tmp_path, make):
    "Guards against a KeyError where somebody goes from lesson 4 or 7 to lesson 8 with a network of their own."
    made, task = pretrain(make(), images(), folder=tmp_path/"own", steps=4).model, images()
    model = TransferModel.from_pretrained(tmp_path/"own", task).eval()
    with torch.inference_mode(): assert torch.equal(model.features(task.test.inputs), made.eval().backbone(made.prepare(task.test.inputs)))
    with pytest.raises(ValueError, match="without a head; give a task"): TransferModel.from_pretrained(tmp_path/"own")
    scratch = TransferModel.from_scratch(tmp_path/"own", task)
    assert sum(w.numel() for w in scratch.parameters()) == sum(w.numel() for w in model.parameters())


def test_a_network_of_ones_own_is_saved_but_is_no_backbone(tmp_path):
    "Guards against an error after the training, when all would be lost."
    pretrain(MaskedPatches(), images(), model=torch.nn.Conv2d(1, 1, 1), folder=tmp_path/"own", steps=2)
    assert read_weights(tmp_path/"own"/"model.safetensors")["weight"].shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="of the type 'Conv2d', whose backbone cannot be built"): TransferModel.from_pretrained(tmp_path/"own", images())


def test_without_validation_data_there_is_no_measurement(text):
    "Guards against a bare StopIteration, which a loop around it would swallow."
    result = pretrain(GloVe(width=8, min_count=1), text, steps=2)
    with pytest.raises(ValueError, match="no validation data"): result.validation


def test_checkpoints_of_another_kind_are_refused(text, tmp_path):
    pretrain(masked(), text, folder=tmp_path/"masked", steps=2)
    pretrain(causal(), text, folder=tmp_path/"causal", steps=2)
    with pytest.raises(ValueError, match="another kind.*CausalLM"): pretrain(masked(), text, model=tmp_path/"causal", steps=2)
    with pytest.raises(ValueError, match="another kind"): pretrain(causal(), text, model=tmp_path/"masked", steps=2)
    (tmp_path/"nothing").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"): pretrain(masked(), text, model=tmp_path/"nothing", steps=2)
    from transformers import BertForSequenceClassification
    folder = tmp_path/"classifier"
    BertForSequenceClassification(BertConfig(**SMALL)).save_pretrained(folder); test_corruption_is_80_10_10.tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="was not trained as AutoModelForMaskedLM"): pretrain(masked(), text, model=folder, steps=2)


def test_a_truncated_checkpoint_is_refused(text, tmp_path):
    "Guards against the raw error of the reader, which names no file."
    pretrain(masked(), text, folder=tmp_path/"model", steps=2)
    for name in ("model.safetensors", "tokenizer.json"):
        whole = (tmp_path/"model"/name).read_bytes()
        (tmp_path/"model"/name).write_bytes(whole[:len(whole) // 2])
        with pytest.raises(ValueError, match="model' is no complete checkpoint: ."): load_language_model(tmp_path/"model", "AutoModelForMaskedLM")
        (tmp_path/"model"/name).write_bytes(whole)
    load_language_model(tmp_path/"model", "AutoModelForMaskedLM")


@pytest.mark.parametrize("error", [httpx.RemoteProtocolError("peer closed connection"), httpx.ReadTimeout("")], ids=lambda error: type(error).__name__)
def test_a_broken_download_is_a_connection_error(monkeypatch, error):
    "Guards against the raw error of the client."
    def broken(*args, **options): raise error
    monkeypatch.setattr("ftlearn.pretraining.causal_lm.hub_answers", lambda: True)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", broken)
    with pytest.raises(ConnectionError, match="could not be fetched .(peer closed|ReadTimeout).*docs-decoder"): load_language_model("some-owner/some-model", "AutoModelForCausalLM")


def test_an_unreachable_hub_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr("ftlearn.pretraining.causal_lm.hub_answers", lambda: False)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="docs-decoder"): load_language_model("some-owner/some-model", "AutoModelForCausalLM")
    assert time.monotonic() - start < 5


def test_too_little_text_is_refused(tmp_path):
    (tmp_path/"few.txt").write_text("a few words only, and no more\n" * 3)
    with pytest.raises(ValueError, match="supports a vocabulary|fewer than one row"): pretrain(masked(), tmp_path/"few.txt", steps=2)
    with pytest.raises(ValueError, match="no two words occur"): pretrain(SkipGram(min_count=50), tmp_path/"few.txt", steps=2)


def test_a_model_without_its_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match="tokenizer"): pretrain(masked(), text, model=BertForMaskedLM(BertConfig(**SMALL)), steps=2)


# --- Word vectors ----------------------------------------------------------------------------------------------------

@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None)
def test_cooccurrences_are_counted_within_documents(documents, window):
    text = np.concatenate([np.array([*d, -1], np.int32) for d in documents])
    expected = np.zeros((5, 5))
    for d in documents:
        for i, a in enumerate(d):
            for j, b in enumerate(d):
                if i != j and abs(i - j) <= window: expected[a, b] += 1 / abs(i - j)
    np.testing.assert_allclose(cooccurrence(text, 5, window).toarray(), expected, rtol=1e-5)


def test_contexts_stay_within_window_and_document():
    text = np.array([0, 1, 2, 3, -1, 4, 5, 6, -1], np.int32)
    data = Contexts(text, window=3)
    assert len(data) == 7
    for _ in range(20):
        centres, contexts = data.__getitems__(list(range(7)))
        for c, row in zip(centres.tolist(), contexts.tolist()):
            assert all((x < 4) == (c < 4) and 1 <= abs(x - c) <= 3 for x in row if x >= 0)


def test_skip_gram_is_its_formula():
    vocabulary = Vocabulary(list("abcdef"), np.array([6, 5, 4, 3, 2, 1]))
    model = WordVectors(vocabulary, 4)
    torch.manual_seed(0); torch.nn.init.normal_(model.centre); torch.nn.init.normal_(model.context)
    objective = SkipGram(draws=200_000, negatives=3); objective.noise = torch.from_numpy(vocabulary.counts**0.75)
    centres, contexts = torch.tensor([0, 3]), torch.tensor([[1, -1], [2, 5]])
    p = objective.noise / objective.noise.sum()
    def pair(w, c): return -F.logsigmoid(model.context[c] @ model.centre[w]) - 3 * (p * F.logsigmoid(-model.context @ model.centre[w])).sum()
    expected = (pair(0, 1) + pair(3, 2) + pair(3, 5)) / 3
    assert objective(model, centres, contexts).item() == pytest.approx(expected.item(), rel=0.01)


def test_vectors_are_found_by_name(text, tmp_path):
    result = pretrain(SkipGram(width=8, min_count=1), text, folder=tmp_path/"vectors", steps=3)
    assert len(result.model.neighbours("fox", 4)) == 4 and "fox" not in result.model.neighbours("fox", 4)
    with pytest.raises(KeyError, match="not in the vocabulary"): result.model["unicorn"]
    lines = (tmp_path/"vectors"/"vectors.txt").read_text().splitlines()
    assert lines[0].split() == [str(len(lines) - 1), "8"]


# --- Images ----------------------------------------------------------------------------------------------------------

@given(n=st.integers(2, 8), seed=st.integers(0, 99), temperature=st.floats(0.1, 2))
@settings(deadline=None, max_examples=30)
def test_contrastive_loss_is_its_formula(n, seed, temperature):
    torch.manual_seed(seed)
    z = F.normalize(torch.randn(2 * n, 5), dim=1)
    scores = (z @ z.T / temperature).exp()
    expected = -sum(math.log(scores[i, (i + n) % (2 * n)] / (scores[i].sum() - scores[i, i])) for i in range(2 * n)) / (2 * n)
    assert contrastive_loss(z, temperature).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def small_letters() -> Task: return load_task("glyphs", n=500)


def test_masked_patches_ask_only_for_what_is_hidden():
    torch.manual_seed(0)
    images = torch.rand(8, 1, 8, 8)
    seen, asked = MaskedPatches(rate=0.5, patch=2).corrupted(images)
    assert torch.equal(seen[asked == 0], images[asked == 0]) and seen[asked == 1].unique().tolist() == pytest.approx([0.3])
    blocks = asked.view(8, 4, 2, 4, 2)
    assert (blocks == blocks[:, :, :1, :, :1]).all() and 0.3 < asked.mean() < 0.7


@pytest.mark.parametrize("objective", [Reconstruction(code=4), Denoising(), MaskedPatches(), SimCLR()])
def test_image_objectives_learn_without_labels(tmp_path, objective):
    letters = small_letters()
    letters.train.labels[:] = 0                         # they must not be used
    result = pretrain(objective, letters, folder=tmp_path/"model", steps=30)
    assert np.mean(result.history.losses[-5:]) < np.mean(result.history.losses[:5])
    assert {"model.safetensors", "config.json", "README.md"} <= {p.name for p in (tmp_path/"model").iterdir()}


def test_the_code_has_the_size_that_was_asked_for():
    assert Autoencoder(code=5).encode(torch.rand(3, 1, 8, 8)).shape == (3, 5)
    assert Autoencoder()(torch.rand(3, 1, 8, 8)).shape == (3, 1, 8, 8)




def test_scores_that_are_bent_are_refused():
    "Guards against a loss that is silently another one where a model caps its logits."
    from transformers import Gemma2Config, Gemma2ForCausalLM
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=5.0))
    tokens = torch.randint(50, (2, 8))
    with pytest.raises(ValueError, match="final_logit_softcapping"): CausalLM().predicted(model, tokens)
    model.config.final_logit_softcapping = None
    hidden, targets = CausalLM().predicted(model, tokens)
    ours = linear_cross_entropy(hidden, model.lm_head.weight, None, targets)
    assert ours.item() == pytest.approx(model(input_ids=tokens, labels=tokens).loss.item(), rel=1e-4)
