"""Tiny models of every family, randomly initialised from their configuration classes."""

import torch
import transformers
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from atoms.activations.language_model import meta_model

BLOCKS = 3
WIDTH = 16
NEURONS = 24
COMMON = {
    "num_hidden_layers": BLOCKS, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": NEURONS,
}  # fmt: skip
GROUPED = {**COMMON, "num_key_value_heads": 1}
HEADS = {**GROUPED, "head_dim": 8}
SPECIALS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_layer": BLOCKS, "n_embd": WIDTH, "n_head": 2, "n_inner": NEURONS}
OPT = {**COMMON, "word_embed_proj_dim": WIDTH, "ffn_dim": NEURONS}

PRE_NORM = {
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "gpt_neox sequential": ("GPTNeoXConfig", {**COMMON, "use_parallel_residual": False}),
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", HEADS),
    "gemma2": ("Gemma2Config", HEADS),
    "gemma3": ("Gemma3TextConfig", HEADS),
    "opt": ("OPTConfig", OPT),
    "phi": ("PhiConfig", COMMON),
    "phi3": ("Phi3Config", GROUPED),
    "modernbert": ("ModernBertConfig", {**COMMON, "cls_token_id": 1, "sep_token_id": 2}),
    "bloom": ("BloomConfig", {"n_layer": BLOCKS, "hidden_size": WIDTH, "n_head": 2}),
    "cohere": ("CohereConfig", GROUPED),
    "falcon": ("FalconConfig", {**COMMON, "ffn_hidden_size": NEURONS}),
    "gemma": ("GemmaConfig", HEADS),
    "glm4": ("Glm4Config", HEADS),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT2),
    "granite": ("GraniteConfig", GROUPED),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "lfm2": ("Lfm2Config", {**GROUPED, "layer_types": ["full_attention"] * BLOCKS}),
    "mpt": ("MptConfig", {"n_layers": BLOCKS, "d_model": WIDTH, "n_heads": 2}),
    "olmo2": ("Olmo2Config", GROUPED),
    "stablelm": ("StableLmConfig", GROUPED),
    "starcoder2": ("Starcoder2Config", GROUPED),
}
"""Families whose blocks add the outputs of their branches to a residual stream that nothing else touches."""

EXPERTS = {
    "mixtral": ("MixtralConfig", GROUPED),
    "gpt_oss": ("GptOssConfig", HEADS),
    "qwen3_moe": ("Qwen3MoeConfig", {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}),
}
"""The same with mixtures of experts for MLPs."""

# Families that normalise after the addition, with the paths within a block of the two norms.
_BERT = ("attention.output.LayerNorm", "output.LayerNorm")
POST_NORM = {
    "bert": ("BertConfig", COMMON, *_BERT),
    "roberta": ("RobertaConfig", COMMON, *_BERT),
    "opt post-norm": ("OPTConfig", {**OPT, "do_layer_norm_before": False}, "self_attn_layer_norm", "final_layer_norm"),
    "opt projected": (
        "OPTConfig", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8}, "self_attn_layer_norm",
        "final_layer_norm",
    ),
    "deberta": ("DebertaV2Config", COMMON, *_BERT),
    "distilbert": (
        "DistilBertConfig", {"n_layers": BLOCKS, "dim": WIDTH, "n_heads": 2, "hidden_dim": NEURONS}, "sa_layer_norm",
        "output_layer_norm",
    ),
    "electra": ("ElectraConfig", {**COMMON, "embedding_size": WIDTH}, *_BERT),
    "mpnet": ("MPNetConfig", COMMON, "attention.LayerNorm", "output.LayerNorm"),
}  # fmt: skip
FAMILIES = {**PRE_NORM, **EXPERTS, **{name: entry[:2] for name, entry in POST_NORM.items()}}


def config_of(family: str, **changes: object) -> PretrainedConfig:
    """The configuration of a family's tiny model."""
    name, settings = FAMILIES[family]
    return getattr(transformers, name)(**{**SPECIALS, **settings, **changes})


def tiny(family: str, **changes: object) -> PreTrainedModel:
    """A tiny model with weights."""
    torch.manual_seed(0)
    return AutoModel.from_config(config_of(family, **changes)).eval()


def meta(family: str) -> PreTrainedModel:
    """The same without weights."""
    return meta_model(config_of(family))


def sentences() -> dict[str, torch.Tensor]:
    """Two sequences of 7 tokens, the second with padding."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(5, 50, (2, 7), generator=generator), "attention_mask": mask}
