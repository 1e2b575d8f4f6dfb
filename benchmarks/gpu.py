"""Training and generation on a GPU: ours against stock SFTTrainer and plain generate, on random Qwen2-shaped models.

    python -m benchmarks.gpu           # 0.5B and 7B, bfloat16 and 4-bit; 7B needs 16 GB of disk and a large GPU
    python -m benchmarks.gpu --sizes 0.5B --json gpu.json
    python -m benchmarks.gpu --tiny    # seconds, on a CPU too: shows that the script works, nothing else

Random weights cost what trained ones cost, and need no download. Prompts are random tokens that share their first 60 (a
template and an instruction); a random model does not end an answer, so both sides write the same number of tokens.

- train: tokens/s of LoRA (r 8, q and v) on prompts of up to 180 tokens and 12 supervised, the median optimizer step
  after two for warming up. Stock = TRL's SFTTrainer as it comes: its loss, activation checkpointing on. On CUDA ours
  uses TRL's own loss, too, and differs by its settings alone.
- generate: titles/s with 4 beams. Stock = `model.generate` in file order with batch 16.
- ceiling: bfloat16 matmul of this device, measured. Its share counts 4 FLOP a parameter of the layers and token for
  training (forward, and the backward through a frozen base), 2 for generation, which memory bounds, not arithmetic.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import SFTTrainer

from bigrec_hf.common.environment import peak_memory_mib
from bigrec_hf.common.processes import process_state
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.models.loading import load_base, lora_config
from bigrec_hf.settings import SftSettings
from bigrec_hf.sft.config import trainer_config
from bigrec_hf.sft.trainer import CompletionLossTrainer

# hidden, intermediate, layers, heads, key-value heads, vocabulary, head tied to the embedding
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "tiny": (64, 96, 2, 4, 2, 640, True),
}
N_WORDS, SHARED, PROMPT, ANSWER = 600, 60, 180, 12  # tokens known to the tokenizer; of a prompt, and of an answer
WARM_UP = 2  # optimizer steps, batches


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(N_WORDS - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def save_random_model(size: str, folder: Path, dtype: torch.dtype, device: torch.device) -> str:
    """A Qwen2 checkpoint of this shape with random weights; kept for the next call."""
    path = folder / size
    if not (path / "config.json").is_file():
        hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = SHAPES[size]
        config = Qwen2Config(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:
                Qwen2ForCausalLM(config).save_pretrained(path)
        finally:
            torch.set_default_dtype(default)
    return str(path)


def block_parameters(size: str) -> int:
    """Parameters of all layers, without embedding and head: what costs arithmetic at every token."""
    hidden, intermediate, layers, heads, kv_heads, _, _ = SHAPES[size]
    attention = hidden * hidden * 2 + hidden * (hidden // heads * kv_heads) * 2
    return layers * (attention + 3 * hidden * intermediate)


def make_prompts(n: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    first = rng.integers(3, N_WORDS, SHARED).tolist()
    return [first + rng.integers(3, N_WORDS, PROMPT - SHARED - int(rng.integers(0, 40))).tolist() for _ in range(n)]


def matmul_tflops(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """The best of several square products, in 10**12 FLOP/s."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        start = clock(device)
        torch.mm(a, b)
        times.append(clock(device) - start)
    return 2 * n**3 / min(times) / 1e12


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class StepTimes(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends = device, []

    def on_step_end(self, args, state, control, **rest):
        self.ends.append(clock(self.device))


def train(kind: str, model: PreTrainedModel, quantized: bool, steps: int, batch: int, folder: Path) -> float:
    """Tokens/s of `kind` (ours or stock): the median step after the first ones."""
    device, tokenizer = process_state().device, make_tokenizer()
    prompts = make_prompts(batch * (steps + WARM_UP))
    rng = np.random.default_rng(1)
    rows = [(prompt, [*rng.integers(3, N_WORDS, ANSWER - 1).tolist(), 1]) for prompt in prompts]
    data = Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in rows],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in rows],
        }
    )
    settings = SftSettings(
        epochs=1,
        warmup_steps=0,
        global_batch_size=batch,
        micro_batch_size=batch,
        activation_checkpointing=kind == "stock",
        evals_per_epoch=0,
        trainer_args={"disable_tqdm": True, "logging_strategy": "no"},
    )
    config = trainer_config(
        str(folder / "trainer"),
        settings,
        dtype=model.dtype,
        quantized=quantized,
        n_train=len(data),
        has_validation=False,
    )
    times = StepTimes(device)
    trainer = (CompletionLossTrainer if kind == "ours" else SFTTrainer)(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora_config(r=8, alpha=16, dropout=0.05, target_modules=["q_proj", "v_proj"]),
        callbacks=[times],
    )
    trainer.train()
    seconds = statistics.median(np.diff(times.ends[WARM_UP - 1 :]))
    return sum(map(len, data["input_ids"])) / len(data) * batch / seconds


def generate(kind: str, model: PreTrainedModel, batches: int, batch: int) -> float:
    """Titles/s of `kind` with 4 beams: the median batch after the first ones."""
    device, tokenizer = model.device, make_tokenizer()
    size = batch if kind == "ours" else 16
    n = size * (batches + WARM_UP)
    prompts = sorted(make_prompts(n), key=len, reverse=True) if kind == "ours" else make_prompts(n)
    if kind == "ours":
        decoding = Decoding("beam", num_beams=4, max_new_tokens=ANSWER)
        decoder = Decoder(model, tokenizer, decoding, shared_prefix=prompts[0][: common_prefix_length(prompts)])
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1)
    times = []
    for start in range(0, n, size):
        part = prompts[start : start + size]
        begun = clock(device)
        if kind == "ours":
            decoder.decode(part, [str(i) for i in range(len(part))])
        else:
            inputs = tokenizer.pad({"input_ids": part}, return_tensors="pt").to(device)
            with torch.inference_mode():
                output = model.generate(**inputs, num_beams=4, num_return_sequences=4, max_new_tokens=ANSWER)
            tokenizer.batch_decode(output)
        times.append(clock(device) - begun)
    return size / statistics.median(times[WARM_UP:])


def measure(size: str, quantization: str, ceiling: float, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: both stages, both kinds, in turns."""
    device = process_state().device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    path = save_random_model(size, folder, dtype, device)
    parameters = block_parameters(size)
    row: dict[str, Any] = {"model": size, "weights": "bf16" if quantization == "none" else "4-bit (NF4)"}
    for stage in ("train", "generate"):
        rates: dict[str, list[float]] = {"ours": [], "stock": []}
        peaks = {}
        for _ in range(options.rounds):
            for kind, found in rates.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                model = load_base(path, dtype=str(dtype).removeprefix("torch."), quantization=quantization)
                if stage == "train":
                    found.append(train(kind, model, quantization != "none", options.steps, options.batch, folder))
                else:
                    found.append(generate(kind, model.eval(), options.steps, options.batch))
                peaks[kind] = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory_mib()
                del model
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        ours, stock = (statistics.median(found) for found in rates.values())
        flops = 4 * parameters * ours if stage == "train" else 2 * parameters * (PROMPT + 4 * ANSWER) * ours
        row[stage] = {
            "ours": ours,
            "stock": stock,
            "ratio": ours / stock,
            "share_of_ceiling": flops / 1e12 / ceiling,
            "peak_mib": {kind: round(peak) for kind, peak in peaks.items()},
        }
    return row


def table(rows: list[dict[str, Any]], device: str, ceiling: float) -> str:
    lines = [
        f"{device}, torch {torch.__version__}; matmul ceiling {ceiling:.3g} TFLOP/s\n",
        "| model | weights | stage | ours | stock | ratio | share of the ceiling | peak memory, ours / stock |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for stage, unit in (("train", "tokens/s"), ("generate", "titles/s, 4 beams")):
            cell = row[stage]
            gib = " / ".join(f"{cell['peak_mib'][kind] / 1024:.2f} GiB" for kind in ("ours", "stock"))
            lines.append(
                f"| {row['model']} | {row['weights']} | {stage} ({unit}) | {cell['ours']:,.1f} | "
                f"{cell['stock']:,.1f} | {cell['ratio']:.2f} | {cell['share_of_ceiling']:.1%} | {gib} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.5B", "7B"], choices=list(SHAPES))
    parser.add_argument("--weights", nargs="+", default=["none", "4bit"], choices=["none", "4bit"])
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps, and batches, that are timed")
    parser.add_argument("--batch", type=int, default=32, help="examples a step, prompts a batch (stock generate: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind, in turns; medians are shown")
    parser.add_argument("--work_dir", help="folder for the random checkpoints (default: temporary)")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few steps, to try the script")
    options = parser.parse_args()
    device = process_state().device
    if options.tiny:
        options.sizes, options.steps, options.batch, options.rounds = ["tiny"], 2, 2, 1
    elif device.type != "cuda":
        sys.exit("no GPU here: --tiny tries the script on a CPU")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceiling = matmul_tflops(device, dtype, 256 if options.tiny else 8192)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.work_dir or temporary)
        rows = [measure(size, kind, ceiling, folder, options) for size in options.sizes for kind in options.weights]
    print(table(rows, name, ceiling))
    if options.json:
        facts = {"device": name, "torch": torch.__version__, "matmul_tflops": ceiling, "rows": rows}
        Path(options.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
