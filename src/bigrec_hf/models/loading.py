"""Loading of the base model, its quantization, its tokenizer and its adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import hub_errors, is_hub_id
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.metrics.ndcg_hr.names import split_revision

if TYPE_CHECKING:
    from bigrec_hf.settings import ModelSettings

FSDP = "ACCELERATE_USE_FSDP"  # set by `accelerate launch`


def find_model(base_model: str | None) -> tuple[str, str | None]:
    """Return (folder or Hub id, revision) of a base model. Raises BigrecError if it is missing."""
    if not base_model:
        raise BigrecError("no base model given: set base_model (section `model`) to a folder or Hub id")
    path, revision = split_revision(base_model)
    if not Path(path).is_dir() and not is_hub_id(base_model, bare=True):
        raise BigrecError(
            f"base model folder {path!r} does not exist (`make quickstart` downloads that of the quickstart)"
        )
    return path, revision


def load_tokenizer(base_model: str | None, *, padding_side: str = "right") -> PreTrainedTokenizerBase:
    """Return the tokenizer of the base model; EOS replaces a missing pad token (padding is always masked).

    Raises BigrecError if it has neither.
    """
    path, revision = find_model(base_model)
    with hub_errors(str(base_model)):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, padding_side=padding_side, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BigrecError(
                f"the tokenizer of {base_model!r} has neither a pad nor an EOS token: set eos_token in it"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def quantization_config(quantization: str, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the configuration of `8bit` (LLM.int8) or `4bit` (NF4, double-quantized as in QLoRA), else None."""
    if quantization == "none":
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization != "4bit":
        raise BigrecError(f"quantization is {quantization!r}: choose none, 8bit or 4bit")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_training_base(model: ModelSettings) -> PreTrainedModel:
    """Return the base model of the settings, to train an adapter on. Raises BigrecError as `load_base`."""
    return load_base(
        model.base_model,
        dtype=model.dtype,
        quantization=model.quantization,
        attn_implementation=model.attn_implementation,
        for_training=True,
    )


def load_base(
    base_model: str | None,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    attn_implementation: str | None = None,
    device: str | torch.device | None = None,
    for_training: bool = False,
) -> PreTrainedModel:
    """Return the causal LM on `device` (default: that of this process). Raises BigrecError if it cannot be found.

    `for_training`: a trainer that shards the weights over the processes (FSDP, ZeRO-3) also places them, so that the
    whole model is never on one device. Raises BigrecError for a quantized base, which neither of them can shard.
    """
    path, revision = find_model(base_model)
    device = torch.device(device) if device is not None else PartialState().device
    torch_dtype = resolve_dtype(dtype, device)
    config = quantization_config(quantization, torch_dtype)
    sharded = for_training and (launched_with_fsdp() or is_deepspeed_zero3_enabled())
    if sharded and config is not None:
        raise BigrecError(
            f"a base in {quantization} cannot be sharded (FSDP, ZeRO-3): train it data-parallel "
            "(accelerate_configs/ddp.yaml), or set quantization to none"
        )
    options: dict[str, Any] = {"dtype": torch_dtype, "revision": revision, "trust_remote_code": False}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if config is not None:
        options |= {"quantization_config": config, "device_map": {"": device}}
    with hub_errors(str(base_model)), contextlib.nullcontext() if for_training else whole_weights():
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    if config is None and not sharded:
        model.to(device)  # type: ignore[arg-type]  # transformers wraps `to`, which hides its parameters
    elif quantization == "4bit":
        keep_4bit_differentiable(model)
    return model


def launched_with_fsdp() -> bool:
    """Return whether `accelerate launch` started this job with FSDP."""
    return os.environ.get(FSDP, "false").lower() in ("1", "true")


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Let every process read all weights: with FSDP, transformers reads them in the first process only."""
    launched_with = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if launched_with is not None:
            os.environ[FSDP] = launched_with


def keep_4bit_differentiable(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit layers for AVX512-BF16 CPUs in evaluation mode.

    The repacked layout has no backward pass, so training after the first evaluation would use wrong gradients.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def keep_trainable_precise(model: PreTrainedModel | PeftModel) -> None:
    """Convert trainable weights on a quantized base to float32.

    TRL converts them to bfloat16, whose relative steps of 2**-8 are larger than most updates at learning rates of LoRA,
    so that updates would be rounded away.
    """
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def mend_names(model: PreTrainedModel) -> None:
    """Give a model the names by which TRL finds its experts and its transformer, where its own class has others."""
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits") and not hasattr(config, "num_experts"):  # PhiMoE, GraniteMoe
        config.num_experts = getattr(config, "num_local_experts", 0)
        if config.num_experts == 0:  # the dense ones of a family with experts: there is nothing to balance
            config.router_aux_loss_coef = 0.0
    if model.base_model is model and isinstance(getattr(model, "model", None), torch.nn.Module):  # Llama 4's text part
        model.base_model_prefix = "model"


def lora_config(
    *, r: int, alpha: int, dropout: float, target_modules: list[str], base_name: str | None = None
) -> LoraConfig:
    """Return LoRA without bias terms (BIGRec: r 8, alpha 16, dropout 0.05 on q_proj and v_proj)."""
    targets: str | list[str] = "all-linear" if target_modules == ["all-linear"] else list(target_modules)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
    )


def backbone(model: PreTrainedModel | PeftModel) -> torch.nn.Module:
    """Return the transformer of the causal LM without the LM head, including the layers of an adapter."""
    network = (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
    assert isinstance(network, torch.nn.Module)  # an attribute of a module may be a tensor to a type checker
    return network


def load_adapter(model: PreTrainedModel, adapter: str) -> PeftModel:
    """Return the model with an adapter (folder or Hub id) around it.

    Raises BigrecError if there is none, or if it needs a package that is not installed.
    """
    path, revision = _adapter_place(adapter)
    try:
        with hub_errors(adapter):
            return PeftModel.from_pretrained(model, path, revision=revision)
    except ImportError as error:
        raise BigrecError(f"the adapter {adapter!r} cannot be loaded ({error}): install what it needs") from error


def load_trainable(base: PreTrainedModel, adapter: str) -> PeftModel:
    """Return the base model with an adapter (folder or Hub id) whose weights can be trained further, without dropout.

    Raises BigrecError if there is no such adapter.
    """
    path, revision = _adapter_place(adapter)
    with hub_errors(adapter):
        config = PeftConfig.from_pretrained(path, revision=revision)
        config.inference_mode = False
        if isinstance(config, LoraConfig):
            config.lora_dropout = 0.0
        return PeftModel.from_pretrained(base, path, config=config, revision=revision, is_trainable=True)


def _adapter_place(adapter: str) -> tuple[str, str | None]:
    path, revision = split_revision(adapter)
    if not is_hub_id(adapter, bare=True) and not (Path(path) / "adapter_config.json").is_file():
        raise BigrecError(f"{path!r} has no adapter (adapter_config.json): train one with `bigrec-hf sft`")
    return path, revision


def load_generator(
    base_model: str,
    adapter: str | None,
    *,
    dtype: str,
    quantization: str,
    attn_implementation: str | None,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Return the base model, with the adapter if there is one, in evaluation mode.

    The adapter is merged into 16/32-bit weights. On a quantized base it stays separate, because merging would round the
    update to the quantization grid. Raises BigrecError if either is missing, or if the adapter needs a package that is
    not installed.
    """
    # Any: with an adapter this is a PeftModel, which forwards everything to the model inside it
    model: Any = load_base(
        base_model, dtype=dtype, quantization=quantization, attn_implementation=attn_implementation, device=device
    )
    if adapter is not None:
        model = load_adapter(model, adapter)
        if quantization == "none":
            model = model.merge_and_unload()
    return model.eval()
