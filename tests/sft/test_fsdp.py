"""A base in shards on two processes: the same adapter as one process trains, also when resumed."""

from __future__ import annotations

import json
import os

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.models.loading import load_base
from tests.helpers.processes import ROOT, run_python
from tests.helpers.tiny import save_tiny_model

SCRIPT = """
import os, sys
import transformers.trainer
from accelerate import PartialState
from accelerate.state import DistributedType

start, rotate = PartialState.__init__, transformers.trainer.rotate_checkpoints

def on_cpus(self, *args, **options):
    start(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:  # accelerate's FSDP is for GPUs alone; torch's is not
        self.distributed_type = DistributedType.MULTI_GPU

def stop(output_dir, **options):
    if os.path.exists(os.path.join(output_dir, os.environ.get("STOP_AFTER", "never"))):
        os._exit(9)
    rotate(output_dir=output_dir, **options)

PartialState.__init__, transformers.trainer.rotate_checkpoints = on_cpus, stop
from bigrec_hf import cli
sys.exit(cli.main(sys.argv[1:]))
"""


PAIRS = ["--sample", "16", "--validation_sample", "4", "--global_batch_size", "8"]
DENSE = ["--objective", "dense", "--train_prompt", "titles", "--short_titles", "true", "--max_length", "64"]
DENSE += ["--sample", "0", "--validation_sample", "8", "--global_batch_size", "12"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [PAIRS, [*DENSE, "--loss", "trie"], [*DENSE, "--loss", "full"]],
    ids=["pairs", "dense-trie", "dense-full"],
)
def test_two_processes_with_fsdp_train_the_adapter_of_one(tmp_path, tiny_model_dir, tiny_prepared, objective):
    flags = ["--dataset", tiny_prepared, "--base_model", tiny_model_dir, "--dtype", "float32", *objective]
    flags += ["--epochs", "2", "--learning_rate", "0.01", "--warmup_steps", "0", "--lora_dropout", "0"]
    flags += ["--micro_batch_size", "2", "--trainer_args", "{logging_steps: 1}"]
    assert cli.main(["sft", *flags, "--run_dir", str(tmp_path / "one"), "--debug"]) == 0
    script = tmp_path / "fsdp.py"
    script.write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["--config_file", ROOT / "accelerate_configs" / "fsdp2.yaml", script]
    command = [*launch, "sft", *flags, "--run_dir", tmp_path / "two", "--debug"]
    for stop_after, code in (("checkpoint-2", 1), ("never", 0)):
        done = run_python(*command, ACCELERATE_USE_CPU="true", STOP_AFTER=stop_after)
        assert done.returncode == code, done.stderr[-3000:]
        weights = tmp_path / "two" / "adapter" / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp.bin"
        assert weights.exists() == (code == 1)  # it was FSDP
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    alone, record = (json.loads((tmp_path / n / "adapter" / "training.json").read_text()) for n in ("one", "two"))
    assert (record["n_processes"], record["optimizer_steps"]) == (2, 4)
    for measure in ("loss", "eval_loss", "eval_nats_per_target"):
        expected, found = ([entry[measure] for entry in run["history"] if measure in entry] for run in (alone, record))
        assert len(expected) == (4 if measure == "loss" else 2)
        assert found == pytest.approx(expected, rel=1e-4), measure
    loaded = PeftModel.from_pretrained(load_base(tiny_model_dir, dtype="float32"), str(tmp_path / "two" / "adapter"))
    assert any(bool((value != 0).any()) for name, value in loaded.named_parameters() if "lora_B" in name)


def test_a_base_in_shards_is_not_put_on_one_device(tmp_path, monkeypatch):
    base = save_tiny_model(tmp_path / "base")
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where, **how: moved.append(type(self).__name__))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    load_base(base, dtype="float32", for_training=True)
    assert "LlamaForCausalLM" not in moved
    load_base(base, dtype="float32")  # to generate, every process has the whole model
    assert "LlamaForCausalLM" in moved
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    with pytest.raises(BigrecError, match="a base in 8bit cannot be sharded"):
        load_base(base, dtype="float32", quantization="8bit", for_training=True)
