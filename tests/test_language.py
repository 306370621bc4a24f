"""Language models as backbones: pooling, padding, saving for everybody, and what happens without a network."""
import time

import pytest
import torch
import torch.nn.functional as F

from ftlearn.adaptation.freezing import BiasesAndNorms, OneGroup, PartialFreezing
from ftlearn.adaptation.proximal import FunctionSP, GroupSP, L2SP, WithSource
from ftlearn.data import Rows, Split, Task
from ftlearn.training import batches, inference_batches, predict
from ftlearn.transfer import model as transfer
from ftlearn.transfer.model import FullFineTuning, LinearProbe, TextPreprocess, TransferModel, extract_features, finetune, load_backbone, text_backbone

WORDS = "the a good bad film was not very dull bright and but ada bob in paris rome met".split()
FILLER = [word for word in WORDS if word not in ("good", "bad")]
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
ARCHITECTURES = {
    "bert": dict(max_position_embeddings=64), "roberta": dict(max_position_embeddings=66, pad_token_id=0), "electra": dict(max_position_embeddings=64, embedding_size=16),
    "mpnet": dict(max_position_embeddings=66), "albert": dict(max_position_embeddings=64, embedding_size=16), "deberta-v2": dict(max_position_embeddings=64, relative_attention=True),
    "modernbert": dict(max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    "distilbert": dict(max_position_embeddings=64, dim=16, n_layers=2, n_heads=2, hidden_dim=24), "gpt2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)}


def tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "##s", ".", ","])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=32)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    "A folder for each architecture, with random weights and a small vocabulary"
    from transformers import AutoConfig, AutoModel
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, options in ARCHITECTURES.items():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(name, **SMALL | options)).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "sentence").mkdir()
    for file in (folder / "bert").iterdir(): (folder / "sentence" / file.name).write_bytes(file.read_bytes())
    (folder / "sentence" / "1_Pooling").mkdir()
    (folder / "sentence" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def reviews(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    def text(label):
        rest = [FILLER[int(torch.randint(len(FILLER), (1,), generator=rng))] for _ in range(int(torch.randint(1, 9, (1,), generator=rng)))]
        return " ".join([*rest[:2], ["bad", "good"][label], *rest[2:]])
    return Split(Rows(text(int(label)) for label in labels), labels)


def sentences(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    def row(i): return (["ada", "bob"][i % 2:][:1] + ["met", "bobs", "in", "paris"][: 2 + int(torch.randint(3, (1,), generator=rng))])
    rows = [row(i) for i in range(n)]
    return Split(Rows(rows), Rows([{"ada": 3, "bob": 3, "bobs": 3, "paris": 1}.get(word, 0) for word in words] for words in rows))


@pytest.fixture
def texts(): return Task("toy reviews", reviews(80), reviews(16, 1), reviews(16, 2), ["negative", "positive"], "text-classification")


@pytest.fixture
def tagged(): return Task("toy names", sentences(24), sentences(12, 1), sentences(12, 2), ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], "token-classification")


# --- Every architecture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sentence"])
def test_a_fine_tuned_model_gives_the_same_probabilities_in_a_pipeline(checkpoints, texts, tmp_path, name):
    from transformers import pipeline
    model = TransferModel.from_pretrained(checkpoints / name, texts)
    finetune(model, texts, FullFineTuning(lr=1e-3), steps=8, batch_size=8)
    ours = predict(model, texts.test).softmax(1)
    classifier = pipeline("text-classification", model=str(model.save_pretrained(tmp_path / "saved")), top_k=None)
    for text, expected, found in zip(texts.test.inputs, ours, classifier(list(texts.test.inputs))):
        scores = {answer["label"]: answer["score"] for answer in found}
        assert scores == pytest.approx(dict(zip(texts.label_names, expected.tolist())), abs=2e-4), text
    restored = TransferModel.from_pretrained(tmp_path / "saved")
    assert torch.allclose(predict(restored, texts.test).softmax(1), ours, atol=1e-5) and restored.label_names == texts.label_names


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES])
def test_a_fine_tuned_tagger_gives_the_same_probabilities_in_a_pipeline(checkpoints, tagged, tmp_path, name):
    from transformers import pipeline
    model = TransferModel.from_pretrained(checkpoints / name, tagged)
    finetune(model, tagged, FullFineTuning(lr=1e-3), steps=8, batch_size=8)
    tagger = pipeline("token-classification", model=str(model.save_pretrained(tmp_path / "saved")), ignore_labels=[])
    for words in list(tagged.test.inputs)[:4]:
        with torch.inference_mode(): ours = model([words])[0].softmax(-1)
        found = tagger(" ".join(words))
        ids = model.prepare([words])["input_ids"][0].tolist()
        kept = [i for i, token in enumerate(ids) if token not in (2, 3)]
        assert [answer["score"] for answer in found] == pytest.approx([ours[i].max().item() for i in kept], abs=1e-4)
        assert [answer["entity"] for answer in found] == [tagged.label_names[int(ours[i].argmax())] for i in kept]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "sentence"])
def test_padding_changes_nothing(checkpoints, texts, name):
    model = TransferModel.from_pretrained(checkpoints / name, texts).eval()
    short, long = "good film", "the film was not very bright and not very dull but good ."
    with torch.inference_mode(): alone, together = model([short])[0], model([short, long])[0]
    assert torch.allclose(alone, together, atol=1e-5)


NEW_LAYERS = {"roberta": "classifier.dense", "electra": "classifier.dense", "distilbert": "pre_classifier", "modernbert": "head.dense"}


@pytest.mark.parametrize("name", ["bert", "gpt2", *NEW_LAYERS])
@pytest.mark.parametrize("strategy", [LinearProbe(), PartialFreezing(0), BiasesAndNorms(), OneGroup(-1), L2SP(1e9, lr=1e-3), GroupSP(1e9, lr=1e-3)], ids=lambda s: s.name)
def test_a_layer_that_no_checkpoint_holds_learns_with_the_head(checkpoints, texts, strategy, name):
    "Guards against a random layer below the head that is frozen, or pulled to where chance had put it."
    model = TransferModel.from_pretrained(checkpoints / name, texts)
    before = {key: value.clone() for key, value in model.named_parameters()}
    finetune(model, texts, strategy, steps=6, batch_size=8)
    moved = {key for key, w in model.named_parameters() if (w - before[key]).abs().max() > 1e-4}
    new = {f"backbone.{key}" for key in model.fresh}
    assert moved >= new | {"head.weight"}, "what is new learns"
    if not isinstance(strategy, BiasesAndNorms): assert moved <= new | {"head.weight", "head.bias"}, "what is pretrained does not, or is held"
    assert (f"backbone.native.{NEW_LAYERS[name]}.weight" in new) if name in NEW_LAYERS else not new
    assert len(model.pretrained_weights()) + len(model.new_weights()) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["bert", "gpt2", *NEW_LAYERS])
def test_a_function_is_held_below_what_no_checkpoint_holds(checkpoints, texts, name):
    "Guards against a pull towards what a random layer made of the source's features."
    one, other = (TransferModel.from_pretrained(checkpoints / name, texts, seed=seed).eval() for seed in (0, 1))
    objective, rows = FunctionSP(1e3).objective(one, texts.train)
    assert torch.allclose(rows.source, WithSource.of(other, texts.train).source, atol=1e-5)
    inputs, (labels, source) = one.prepare_split(texts.train).__getitems__([0, 1])[0], rows.__getitems__([0, 1])[1]
    with torch.no_grad():
        for w in one.new_weights(): w.add_(0.5)
        assert torch.allclose(objective(one, inputs, (labels, source)), F.cross_entropy(one(inputs), labels), atol=1e-3), "what is new is free"
        for w in one.pretrained_weights(): w.add_(0.5)
        assert objective(one, inputs, (labels, source)) > F.cross_entropy(one(inputs), labels) + 1, "what is pretrained is not"


def test_the_mean_over_tokens_is_what_a_sentence_transformer_is_pooled_by(checkpoints, texts):
    from transformers import AutoModel
    model = TransferModel.from_pretrained(checkpoints / "sentence", texts).eval()
    plain, batch = AutoModel.from_pretrained(checkpoints / "sentence").eval(), model.prepare(["good film", "the bad film was dull"])
    with torch.inference_mode():
        hidden, mask = plain(**batch).last_hidden_state, batch["attention_mask"]
        mean = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, mask)])
        assert torch.allclose(model.features(batch), F.layer_norm(mean, mean.shape[-1:]), atol=1e-4)


def test_a_saved_model_can_be_gone_on_from(checkpoints, texts, tmp_path):
    "For another task, with a new head, and saved once more"
    model = TransferModel.from_pretrained(checkpoints / "sentence", texts)
    finetune(model, texts, FullFineTuning(lr=1e-3), steps=4, batch_size=8)
    model.save_pretrained(tmp_path / "one")
    other = Task("other", *(Split(s.inputs, s.labels + 1) for s in texts.splits.values()), ["x", "y", "z"], "text-classification")
    again = TransferModel.from_pretrained(tmp_path / "one", other)
    batch = ["good film"]
    again.eval(); model.eval()
    with torch.inference_mode(): assert torch.allclose(again.features(batch), model.features(batch), atol=1e-5)
    again.save_pretrained(tmp_path / "two")
    with torch.inference_mode(): assert torch.allclose(TransferModel.from_pretrained(tmp_path / "two")(batch), again(batch), atol=1e-5)


def test_a_saved_classifier_can_become_a_tagger(checkpoints, texts, tagged, tmp_path):
    "Guards against a pooling layer that stays and gives all tokens the same features."
    model = TransferModel.from_pretrained(checkpoints / "sentence", texts)
    tagger = TransferModel.from_pretrained(model.save_pretrained(tmp_path / "saved"), tagged).eval()
    fresh = TransferModel.from_pretrained(checkpoints / "bert", tagged).eval()
    with torch.inference_mode(): assert torch.allclose(tagger.features([["ada", "met", "bob"]]), fresh.features([["ada", "met", "bob"]]), atol=1e-5)
    tagger.save_pretrained(tmp_path / "tagger")
    assert TransferModel.from_pretrained(tmp_path / "tagger").label_names == tagged.label_names


def test_default_label_names_come_back(checkpoints, texts, tmp_path):
    texts.label_names = ["LABEL_0", "LABEL_1"]
    folder = TransferModel.from_pretrained(checkpoints / "bert", texts).save_pretrained(tmp_path / "saved")
    assert TransferModel.from_pretrained(folder).label_names == ["LABEL_0", "LABEL_1"]
    with pytest.raises(ValueError, match="without a head; give a task"): TransferModel.from_pretrained(checkpoints / "bert")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_groups_run_from_the_embeddings_to_the_last_block(checkpoints, texts, name):
    from ftlearn.adaptation.freezing import layer_groups
    backbone = text_backbone(checkpoints / name).module
    groups = layer_groups(backbone)
    weights = [id(w) for _, group in groups for w in group]
    assert len(weights) == len(set(weights)) == len(list(backbone.parameters()))
    embeddings = {id(w) for module in backbone.modules() if isinstance(module, torch.nn.Embedding) for w in module.parameters()}
    assert embeddings <= {id(w) for w in groups[0][1]}, "an embedding is used first, wherever it is defined"
    assert len(groups) >= (3 if name != "albert" else 2)


# --- Tokens and batches ----------------------------------------------------------------------------------------------


def test_predictions_come_in_the_order_of_the_rows(checkpoints, texts):
    model = TransferModel.from_pretrained(checkpoints / "bert", texts).eval()
    with torch.inference_mode(): one_by_one = torch.cat([model([text]) for text in texts.test.inputs])
    assert torch.allclose(predict(model, texts.test), one_by_one, atol=1e-5)


def test_each_row_once_an_epoch_with_lengths_too():
    lengths = torch.randint(3, 60, (101,), generator=torch.Generator().manual_seed(0))
    epochs = [sum(batches(101, 8, range(13 * e, 13 * (e + 1)), lengths=lengths), []) for e in range(3)]
    assert all(sorted(rows) == list(range(101)) for rows in epochs) and len(set(map(tuple, epochs))) == 3
    assert list(batches(101, 8, range(5, 30), lengths=lengths)) == list(batches(101, 8, range(30), lengths=lengths))[5:]


def test_inference_batches_are_bounded():
    class Inputs(list): lengths = torch.tensor([5] * 40 + [500] * 3 + [9000])
    parts = inference_batches(Split(Inputs(range(44)), torch.zeros(44)), batch_size=16)
    assert sorted(sum(parts, [])) == list(range(44)) and max(map(len, parts)) <= 16
    assert all(len(rows) == 1 or len(rows) * int(Inputs.lengths[rows].max()) <= 4096 for rows in parts)


def test_pairs_have_segments(checkpoints):
    prepare = text_backbone(checkpoints / "bert").prepare
    batch = prepare([("good film", "bad film"), ("good", "dull film")])
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_texts_that_are_cut_are_counted(checkpoints):
    prepare = TextPreprocess(tokenizer(), max_length=8)
    split = Split(Rows(["good film", "film " * 30, "dull " * 20]), torch.tensor([0, 1, 0]))
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than 8 tokens"): prepare.encode(split)


def test_words_are_labelled_at_their_first_piece(checkpoints, tagged):
    model = TransferModel.from_pretrained(checkpoints / "bert", tagged)
    encoded = model.prepare_split(Split(Rows([["bobs", "met"]]), Rows([[3, 0]])))
    assert encoded.inputs.ids[0].tolist()[1:4] == [WORDS.index("bob") + 5, len(WORDS) + 5, WORDS.index("met") + 5]
    assert encoded.labels[0].tolist() == [-100, 3, -100, 0, -100]


def test_a_probe_on_tagged_words_trains_on_words(checkpoints, tagged):
    model = TransferModel.from_pretrained(checkpoints / "bert", tagged)
    features = extract_features(model, tagged.train)
    assert features.inputs.shape == (sum(map(len, tagged.train.labels)), 16) and features.labels.tolist() == sum(tagged.train.labels, [])
    assert finetune(model, tagged, LinearProbe(), steps=20).test["f1"] >= 0
    backbone = model.prepare_split(tagged.test)
    with torch.inference_mode(): direct = model(backbone.__getitems__([0])[0])[0]
    words = direct[backbone.labels[0] >= 0]
    assert torch.allclose(model.head(extract_features(model, tagged.test).inputs[:len(words)]), words, atol=1e-5)


def test_it_learns(checkpoints, texts, tagged):
    model = TransferModel.from_pretrained(checkpoints / "bert", texts)
    assert finetune(model, texts, FullFineTuning(lr=3e-3), steps=120, batch_size=8).test["accuracy"] > 0.9
    tagger = TransferModel.from_pretrained(checkpoints / "modernbert", tagged)
    assert finetune(tagger, tagged, FullFineTuning(lr=3e-3), steps=120, batch_size=8).test["f1"] > 0.9


# --- What is refused -------------------------------------------------------------------------------------------------


def test_an_image_network_is_refused_for_texts(texts):
    with pytest.raises(ValueError, match="network for images"): load_backbone("resnet18", task=texts)


def test_without_a_network_an_unknown_name_fails_within_seconds(texts, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="Available without a network: .*docs-encoder.*all-MiniLM-L6-v2"): load_backbone("owner/no-such-model", task=texts)
    assert time.monotonic() - start < 10


def test_an_incomplete_checkpoint_is_refused(checkpoints, texts, tmp_path):
    "Guards against random weights that pass for pretrained ones."
    from safetensors.torch import load_file, save_file
    for file in (checkpoints / "bert").iterdir(): (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in state.items() if "layer.1." not in key}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no complete checkpoint.*lacks 16 weights"): load_backbone(tmp_path, task=texts)


def test_a_folder_without_a_checkpoint_is_refused(texts, tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"): load_backbone(tmp_path, task=texts)


def test_a_tampered_package_is_refused(texts, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"something else")
    (tmp_path / "__init__.py").write_text("")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(transfer.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="not the file that was published"): transfer.minilm()


def test_raw_inputs_of_the_wrong_type_are_refused(checkpoints, texts):
    model = TransferModel.from_pretrained(checkpoints / "bert", texts)
    with pytest.raises(TypeError, match="must be a str"): model([3])
