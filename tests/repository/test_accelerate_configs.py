"""Every file in accelerate_configs/ is one that accelerate itself accepts; the launch script is one that bash does."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

FOLDER = Path(__file__).resolve().parents[2] / "accelerate_configs"
KINDS = {
    "cpu": "NO",
    "single_gpu": "NO",
    "ddp": "MULTI_GPU",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
    "fsdp2": "FSDP",
}


def test_all_six_are_there():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_loads_it(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert str(config.distributed_type).endswith(KINDS[name])
    assert config.use_cpu is (name == "cpu")
    assert config.num_processes == (1 if KINDS[name] == "NO" else 2)


def test_deepspeeds_stages_and_fsdps_version():
    for stage in (2, 3):
        config = load_config_from_file(str(FOLDER / f"deepspeed_zero{stage}.yaml"))
        assert config.deepspeed_config["zero_stage"] == stage
    assert load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2


def test_the_slurm_script_is_valid_and_names_stages_and_configurations_that_exist():
    script = FOLDER.parent / "recipes" / "slurm" / "run.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    stages = re.findall(r"^stage (\w+)$", text, flags=re.MULTILINE)
    assert stages == ["sft", "generate", "ground"]
    assert all(importlib.util.find_spec(f"bigrec_hf.{stage}.__main__") for stage in stages)
    configurations = re.findall(r"accelerate_configs/\w+\.yaml", text)
    assert configurations and all((FOLDER.parent / name).is_file() for name in configurations)
