"""Training on top of an adapter: it is merged into the base, and what is written is the sum of both.

Two LoRA updates add up to one of the summed rank: s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]. The written adapter
therefore goes with the original base model, and everything that loads an adapter loads it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import Linear, LoraLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_atomically
from bigrec_hf.common.fingerprints import cached_sha256
from bigrec_hf.common.hub_names import fetch_file
from bigrec_hf.models.identity import adapter_fingerprint, check_same_base
from bigrec_hf.models.loading import launched_with_fsdp, load_adapter

ADAPTER = "default"  # PEFT's name of the only adapter of a model
PREFIX = "base_model.model."  # of a layer in the files and in the names of a PeftModel
PLAIN_STARTS = ("gaussian", "orthogonal")  # initializations that leave the base weights as they are

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer -> A (r, in) and B (out, r), scaled; float32, on the CPU


def start_fingerprint(adapter: str) -> dict[str, str]:
    """Return what a training on top of an adapter depends on: its weights, and its configuration, which scales them."""
    weights = adapter_fingerprint(adapter)
    config = fetch_file(adapter, "adapter_config.json", "model")
    assert weights is not None and config is not None  # else BigrecError
    return {"weights": weights, "config": cached_sha256(config)}


def check_start(adapter: str, base_model: str, quantization: str, adapter_dir: Path) -> None:
    """Raise BigrecError if no training can start from an adapter with these settings."""
    if quantization != "none":
        raise BigrecError(
            f"init_adapter {adapter!r} cannot be merged into a base in {quantization}, which would round the update "
            "away: set quantization to none (section model)"
        )
    if launched_with_fsdp() or is_deepspeed_zero3_enabled():
        raise BigrecError(
            f"init_adapter {adapter!r} cannot be merged into a base that is sharded (FSDP, ZeRO-3): train "
            "data-parallel (accelerate_configs/ddp.yaml)"
        )
    if Path(adapter).resolve() == adapter_dir.resolve():
        raise BigrecError(f"init_adapter {adapter!r} is the folder to write to: name another run_dir or adapter_dir")
    check_same_base(adapter, base_model)


def merge_start(base: PreTrainedModel, adapter: str, targets: list[str]) -> tuple[PreTrainedModel, Factors]:
    """Return the base with an adapter (folder or Hub id) merged in, in the base's dtype, and the adapter's factors.

    Raises BigrecError if there is none, or if it or one on the layers `targets` is not plain LoRA on linear layers.
    """
    for place, layer in base.named_modules():
        if place.rpartition(".")[2] in targets and not isinstance(layer, torch.nn.Linear | Conv1D):
            raise BigrecError(
                f"{place} is not a linear layer, so its update cannot be added to init_adapter {adapter!r}: remove it "
                "from lora_target_modules"
            )
    model = load_adapter(base, adapter)
    factors = adapter_factors(model, adapter)
    return model.merge_and_unload(), factors


def adapter_factors(model: PeftModel, name: str) -> Factors:
    """Return the factors of a model's adapter. Raises BigrecError, with its `name`, if it is not plain LoRA."""
    config = model.peft_config[ADAPTER]
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        raise BigrecError(f"init_adapter {name!r} is {config.peft_type}, not LoRA: train a LoRA adapter to start from")
    start = config.init_lora_weights
    odd = {
        "bias": config.bias != "none",
        "modules_to_save": bool(config.modules_to_save),
        "trainable_token_indices": bool(config.trainable_token_indices),
        "layer_replication": bool(config.layer_replication),
        "init_lora_weights": isinstance(start, str) and start not in PLAIN_STARTS,
    }
    factors = {}
    for place, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or ADAPTER not in layer.scaling:
            continue
        odd["layers other than linear ones"] = type(layer) is not Linear
        odd["a variant of LoRA"] = ADAPTER in layer.lora_variant
        odd["lora_bias"] = layer.lora_bias[ADAPTER]
        if any(odd.values()):
            break
        with torch.no_grad():
            a = layer.lora_A[ADAPTER].get_parameter("weight").detach().float().cpu()
            b = layer.lora_B[ADAPTER].get_parameter("weight").detach().float().cpu() * layer.scaling[ADAPTER]
        factors[place.removeprefix(PREFIX)] = (a.clone(), b)
    if any(odd.values()):
        found = ", ".join(key for key, value in odd.items() if value)
        raise BigrecError(
            f"init_adapter {name!r} has {found}: only plain LoRA on linear layers can be added to another adapter; "
            "merge it into the base model yourself and name the result as base_model"
        )
    return factors


def add_factors(first: Factors, second: Factors) -> Factors:
    """Return factors of one rank whose products are the sums of both, with zeros where one of them lacks a layer."""
    rank_1, rank_2 = (max(len(a) for a, _ in factors.values()) for factors in (first, second))
    added = {}
    for place in dict.fromkeys([*second, *first]):
        a, b = first.get(place) or second[place]
        parts = []
        for factors, rank in ((first, rank_1), (second, rank_2)):
            own_a, own_b = factors.get(place, (a[:0], b[:, :0]))
            missing = rank - len(own_a)
            parts.append(
                (
                    torch.nn.functional.pad(own_a, (0, 0, 0, missing)),
                    torch.nn.functional.pad(own_b, (0, missing)),
                )
            )
        added[place] = (torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts], dim=1))
    return added


def write_sum(folder: Path, model: PeftModel, first: Factors) -> None:
    """Replace the adapter's files in `folder`, those of `model`, by its sum with `first`."""
    factors = add_factors(first, adapter_factors(model, str(folder)))
    rank = len(next(iter(factors.values()))[0])
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)  # adapter_factors has checked it
    written = replace(
        config,
        r=rank,
        lora_alpha=rank,  # the scales are in B
        use_rslora=False,
        rank_pattern={},
        alpha_pattern={},
        target_modules=target_names(model, list(factors)),
        inference_mode=True,
    )
    tensors = {}
    for place, (a, b) in factors.items():
        tensors[f"{PREFIX}{place}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{place}.lora_B.weight"] = b.contiguous()
    write_atomically(
        folder / "adapter_model.safetensors", lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"})
    )
    written.save_pretrained(str(folder))


def target_names(model: PeftModel, places: list[str]) -> list[str]:
    """Return the layers' last names, or their whole names if other layers end like them."""
    last = {place.rpartition(".")[2] for place in places}
    alike = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in last}
    return sorted(last) if alike == {f"{PREFIX}{place}" for place in places} else sorted(places)
