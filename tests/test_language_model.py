"""Loading models and making batches for them, with tiny ones on disk and the packaged MiniLM; never the network."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MINILM
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from atoms.activations.language_model import (
    SpecialTokens,
    load_causal_model,
    load_model,
    load_tokenizer,
    max_context,
    meta_model,
    pad_batch,
    require_causal,
    special_tokens,
)
from atoms.activations.model_source import ModelSpec, resolve
from atoms.activations.site_reader import SiteReader, site_widths
from atoms.errors import AtomsError

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BERT_TEMPLATE = ("[CLS] $A [SEP]", [("[CLS]", 1), ("[SEP]", 2)])
LLAMA_TEMPLATE = ("<s> $A", [("<s>", 1)])


def word_tokenizer(template=None, **settings):
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<s>", "the", "cat", "sat", "on", "mat"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    if template is not None:
        backend.post_processor = TemplateProcessing(single=template[0], special_tokens=template[1])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **settings)


def bert_config(**changes):
    return BertConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=10, **changes
    )


def test_loads_the_saved_model(own_bert):
    resolved = resolve(ModelSpec(str(own_bert)))
    untouched = resolved.config.to_dict()
    assert site_widths(meta_model(resolved.config), ["resid_post.0"]) == {"resid_post.0": 16}
    model = load_model(resolved)
    assert resolved.config.to_dict() == untouched
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(
        model.state_dict()["embeddings.word_embeddings.weight"],
        load_file(own_bert / "model.safetensors")["embeddings.word_embeddings.weight"],
    )
    meta = meta_model(resolved.config)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert not meta.training


def test_a_family_whose_code_fails_is_named(monkeypatch):
    def fails(*_args, **_settings):
        raise AttributeError("no such attribute\nmore")

    monkeypatch.setattr("atoms.activations.language_model.AutoModel.from_config", fails)
    with pytest.raises(AtomsError, match=r"no bert can be built \(no such attribute\); name another model"):
        meta_model(bert_config())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtype(tmp_path, dtype, expected):
    AutoModel.from_config(bert_config(), dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(resolve(ModelSpec(str(tmp_path), dtype=dtype))).dtype == expected


def test_rejects_incomplete_checkpoint(own_bert):
    weights = load_file(own_bert / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, own_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AtomsError, match=r"lacks 1 weights, e\.g\. 'encoder\.layer\.1\.output\.dense\.weight'"):
        load_model(resolve(ModelSpec(str(own_bert))))


def test_absent_pooler_is_no_matter(own_bert):
    assert not any(key.startswith("pooler.") for key in load_file(own_bert / "model.safetensors"))
    assert load_model(resolve(ModelSpec(str(own_bert)))).pooler is not None


def test_rejects_broken_weights(own_bert):
    (own_bert / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"not json")
    with pytest.raises(AtomsError, match="cannot load weights"):
        load_model(resolve(ModelSpec(str(own_bert))))


def test_rejects_folder_without_tokenizer(tmp_path):
    AutoModel.from_config(bert_config()).save_pretrained(tmp_path)
    resolved = resolve(ModelSpec(str(tmp_path)))
    with pytest.raises(AtomsError, match="no usable tokenizer"):
        load_tokenizer(resolved)


def test_real_model():
    resolved = resolve(ModelSpec(MINILM, sha256=MINILM_SHA256))
    tokenizer = load_tokenizer(resolved)
    special = special_tokens(tokenizer)
    assert special == SpecialTokens((101,), (102,))
    assert max_context(resolved.config, tokenizer) == 510

    texts = ["The cat sat on the mat.", "Short."]
    ids = [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts]
    inputs = pad_batch(ids, tokenizer.pad_token_id)
    reference = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    assert torch.equal(inputs["attention_mask"], reference["attention_mask"])

    model = load_model(resolved)
    names = [f"resid_post.{block}" for block in range(6)]
    with torch.no_grad(), SiteReader(model, names) as reader:
        rows = reader.read(**inputs)
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(rows[name], state) for name, state in zip(names, states[1:], strict=True))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (BERT_TEMPLATE, SpecialTokens((1,), (2,))),
        (LLAMA_TEMPLATE, SpecialTokens((1,), ())),
        (None, SpecialTokens((), ())),
    ],
)
def test_special_tokens(template, expected):
    special = special_tokens(word_tokenizer(template))
    assert special == expected
    assert len(special) == len(expected.prefix) + len(expected.suffix)


def test_rejects_ambiguous_special_tokens():
    ambiguous = ("the $A", [("the", 5)])
    with pytest.raises(AtomsError, match=r"cannot tell the special tokens .* 'the' is \[5\] without them and \[5, 5\]"):
        special_tokens(word_tokenizer(ambiguous))


@pytest.mark.parametrize(("pad_id", "filling"), [(9, 9), (None, 0)])
def test_pad_batch(pad_id, filling):
    sequences = [np.array(ids, dtype=np.int32) for ids in ([5, 6, 7], [8], [9, 9])]
    inputs = pad_batch(sequences, pad_id)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, filling, filling], [9, 9, filling]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = AutoModel.from_config(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=10, bos_token_id=1, eos_token_id=2)
    )
    chunks = [np.arange(6, dtype=np.int32), np.arange(2, dtype=np.int32)]
    with torch.no_grad(), SiteReader(model.eval(), ["resid_post.1"]) as reader:
        together = reader.read(**pad_batch(chunks, None))["resid_post.1"]
        torch.testing.assert_close(together[1, :2], reader.read(**pad_batch(chunks[1:], None))["resid_post.1"][0])


@pytest.mark.parametrize(
    ("config", "length", "expected"),
    [
        (bert_config(max_position_embeddings=40), None, 38),
        (bert_config(max_position_embeddings=40), 12, 10),
        (GPT2Config(n_positions=30), None, 28),
        (LlamaConfig(max_position_embeddings=64), 100, 62),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), None, 510),
    ],
)
def test_max_context(config, length, expected):
    settings = {} if length is None else {"model_max_length": length}
    assert max_context(config, word_tokenizer(BERT_TEMPLATE, **settings)) == expected


def test_max_context_fits_exactly():
    """RoBERTa numbers positions from beyond the padding id, so its table is longer than its context."""
    config = RobertaConfig(
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=10,
        max_position_embeddings=20,
        pad_token_id=0,
    )
    tokenizer = word_tokenizer(BERT_TEMPLATE)
    model, special = AutoModel.from_config(config).eval(), special_tokens(tokenizer)
    most = max_context(config, tokenizer)
    model(**pad_batch([np.full(most + len(special), 7, dtype=np.int32)], 0))
    with pytest.raises((IndexError, RuntimeError)):
        model(**pad_batch([np.full(most + len(special) + 1, 7, dtype=np.int32)], 0))


def test_no_limit_to_context():
    assert max_context(BloomConfig(), word_tokenizer(BERT_TEMPLATE)) is None


def llama_config(**changes):
    return LlamaConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=24, vocab_size=10, **changes
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_causal_model_is_loaded_whole_and_to_be_trained(tmp_path, tied, dtype):
    torch.manual_seed(0)
    saved = LlamaForCausalLM(llama_config(tie_word_embeddings=tied))
    saved.save_pretrained(tmp_path / "m")
    resolved = resolve(ModelSpec(str(tmp_path / "m"), dtype=dtype))
    model = load_causal_model(resolved)
    assert isinstance(model, LlamaForCausalLM)
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}
    expected = saved.to(getattr(torch, dtype)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert (model.config.use_cache, resolved.config.use_cache) == (False, True)


def test_a_head_that_is_not_in_the_weights_is_not_made_up(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AtomsError, match=r"lacks 1 weights, e\.g\. 'lm_head\.weight', which would be random"):
        load_causal_model(resolve(ModelSpec(str(tmp_path / "m"))))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: LlamaModel(llama_config()), "LlamaModel"),
        (lambda: AutoModel.from_config(bert_config()), "BertModel"),
        (lambda: BertForMaskedLM(bert_config()), "BertForMaskedLM"),
    ],
)
def test_a_model_that_predicts_no_next_token_is_refused(tmp_path, make, kind):
    make().save_pretrained(tmp_path / "m")
    resolved = resolve(ModelSpec(str(tmp_path / "m")))
    said = rf"name='mine' has no causal head \({kind}\), so it predicts no next token: name a causal language model$"
    with pytest.raises(AtomsError, match=said):
        require_causal(resolved.config, "mine")
    with pytest.raises(AtomsError, match=rf"has no causal head \({kind}\)"):
        load_causal_model(resolved)


def test_a_causal_head_is_known_by_the_architecture_that_was_saved(tmp_path):
    for number, make in enumerate((GPT2Config, BloomConfig, LlamaConfig)):
        folder = tmp_path / str(number)
        AutoModelForCausalLM.from_config(
            make(vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(folder)
        config = resolve(ModelSpec(str(folder))).config
        require_causal(config, "mine")
        config.architectures = None
        with pytest.raises(AtomsError, match=rf"no causal head \({config.model_type}\)"):
            require_causal(config, "mine")


def test_weights_that_need_an_absent_library_are_refused_in_one_line(own_bert, monkeypatch):
    def needing(*arguments, **settings):
        raise ImportError("Loading this needs something: `pip install something`\nand more\nlines")

    monkeypatch.setattr(AutoModel, "from_pretrained", needing)
    with pytest.raises(AtomsError) as refused:
        load_model(resolve(ModelSpec(str(own_bert))))
    assert str(refused.value) == (
        f"data.harvest.model.name={str(own_bert)!r}: cannot load weights (Loading this needs something: `pip install "
        "something`): install it, or name the checkpoint that was quantised"
    )
