"""Tiny causal language models of many architectures, random weights, made from the configurations of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tests.helpers.tiny import tiny_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # wide enough for varied answers
}
WINDOW = {"sliding_window": 8}  # shorter than the prompts
ALTERNATE = {"layer_types": ["sliding_attention", "full_attention"], **WINDOW}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
# latent attention (MLA): keys of 8 + 4, values of 6
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
}
DEEPSEEK = {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1}
GROUPS = {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
# gated delta rule beside attention
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}

# row of the table -> (model_type, what differs from SIZES)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, dynamic rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama4_text": (
        "llama4_text",
        {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, sliding window": ("mistral", WINDOW),
    "ministral": ("ministral", {"head_dim": 8, **ALTERNATE}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, sliding window": ("mixtral", {"num_local_experts": 4, **WINDOW}),
    "qwen2": ("qwen2", {}),
    "qwen2, sliding window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "head_dim": 8}),
    "qwen3_next": (
        "qwen3_next",
        {**DELTA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_5_text": ("qwen3_5_text", DELTA),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOW}),
    "gemma3_text": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, **ALTERNATE}),
    "gemma4_text": (
        "gemma4_text",
        {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 4}
        | ALTERNATE,
    ),
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, sliding window": ("phi3", WINDOW),
    "phimoe": ("phimoe", {"num_local_experts": 4, "sliding_window": None}),
    "phimoe, sliding window": ("phimoe", {"num_local_experts": 4, **WINDOW}),
    "falcon, rotary": ("falcon", {}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": (
        "falcon",
        {"num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon_h1": ("falcon_h1", {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "stablelm": ("stablelm", {}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", ALTERNATE),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmo_hybrid": ("olmo_hybrid", DELTA),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "starcoder2, sliding window": ("starcoder2", WINDOW),
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8, **ALTERNATE}),
    "openai-gpt": ("openai-gpt", {}),
    "bloom": ("bloom", {}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mpt": ("mpt", {}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "cohere": ("cohere", {"logit_scale": 1.0}),
    "cohere2": ("cohere2", {"logit_scale": 1.0, **ALTERNATE}),
    "deepseek_v2": ("deepseek_v2", {**DEEPSEEK, "n_group": 1, "topk_group": 1, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**DEEPSEEK, **GROUPS}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", {"num_local_experts": 4}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**MAMBA, "num_local_experts": 4, "shared_intermediate_size": 16, "layer_types": ["mamba", "attention"]},
    ),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [1]}),
    "jamba": (
        "jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "num_experts": 2,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}),
    "recurrent_gemma": ("recurrent_gemma", {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}),
    "persimmon": ("persimmon", {}),
    "smollm3": ("smollm3", {}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": ("ernie4_5_moe", {**EXPERTS, "moe_num_experts": 4, "moe_k": 2}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "glm4_moe": ("glm4_moe", {**EXPERTS, "n_routed_experts": 4, "head_dim": 8, "n_group": 1, "topk_group": 1}),
    "helium": ("helium", {"head_dim": 8}),
    "minicpm3": ("minicpm3", LATENT),
    "minimax": ("minimax", {"num_local_experts": 2, "head_dim": 8}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "exaone4": ("exaone4", ALTERNATE),
    "diffllama": ("diffllama", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 8}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "xglm": ("xglm", {"ffn_dim": 48}),
    "biogpt": ("biogpt", {}),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 8}),
}


def tiny_architecture(name: str, *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """The model of a row of ARCHITECTURES in float32, in evaluation mode, for `tiny_tokenizer`."""
    tokenizer = tiny_tokenizer()
    model_type, different = ARCHITECTURES[name]
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config_class = CONFIG_MAPPING[model_type]
    known = {key: value for key, value in SIZES.items() if hasattr(config_class(), key)}
    config = config_class(**{**known, "vocab_size": len(tokenizer), **tokens, **different, **changes})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
