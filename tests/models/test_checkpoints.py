"""Only a checkpoint that was written completely is resumed from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bigrec_hf.models.checkpoints import last_checkpoint

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def write_checkpoint(folder: Path, step: int, *, best: int | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"lora_A": torch.randn(4, 4)}, checkpoint / FILES[0])
    for name in (*FILES[1:4], "training_args.bin"):
        torch.save({"step": step, "values": torch.randn(50)}, checkpoint / name)
    (checkpoint / FILES[4]).write_text(json.dumps({"global_step": step, "best_global_step": best}))
    return checkpoint


def test_the_newest_complete_checkpoint_by_number(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()  # somebody's copy
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert (tmp_path / "checkpoint-old").is_dir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one byte short"])
def test_a_broken_checkpoint_is_removed(tmp_path, name, damage, capsys):
    older, newer = (write_checkpoint(tmp_path, step) for step in (4, 8))
    content = (newer / name).read_bytes()
    if damage == "missing":
        (newer / name).unlink()
    else:
        left = {"empty": 0, "half": len(content) // 2, "one byte short": len(content) - 1}[damage]
        (newer / name).write_bytes(content[:left])
    assert last_checkpoint(tmp_path) == str(older)
    assert not newer.exists() and "checkpoint-8 was not written completely: removed" in capsys.readouterr().out


def test_a_changed_byte_is_noticed(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 4)
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (checkpoint / "optimizer.pt").write_bytes(content)
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_needs_the_best_one_before_it(tmp_path):
    for step, best in ((2, 2), (4, 4), (6, 4)):
        write_checkpoint(tmp_path, step, best=best)
    (tmp_path / "checkpoint-4" / FILES[0]).unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("layout", ["fsdp", "zero"])
def test_sharded_optimizers_count(tmp_path, layout):
    checkpoint = write_checkpoint(tmp_path, 4)
    (checkpoint / "optimizer.pt").unlink()
    if layout == "fsdp":
        torch.save({"state": {}}, checkpoint / "optimizer.bin")
    else:
        (checkpoint / "scheduler.pt").unlink()
        (checkpoint / "global_step4").mkdir()
        torch.save({"state": {}}, checkpoint / "global_step4" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert last_checkpoint(tmp_path) == str(checkpoint)
