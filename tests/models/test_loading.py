"""Loading models: code of a repository is never run, wrong quantizations are errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bigrec_hf.metrics.ndcg_hr.encoders import load_encoder

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.models.encoder import lazy_encode
from bigrec_hf.models.loading import load_base, load_tokenizer
from tests.helpers.tiny import save_tiny_model

CODE = """
from pathlib import Path
Path({ran!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaTokenizerFast
class Config(LlamaConfig):
    model_type = "theirs"
class Model(LlamaForCausalLM):
    config_class = Config
class Base(LlamaModel):
    config_class = Config
class Tokenizer(LlamaTokenizerFast):
    pass
"""


@pytest.fixture
def remote(tmp_path):
    """A model that needs code of its own; the code leaves a file where it runs."""
    folder = Path(save_tiny_model(tmp_path / "theirs"))
    (folder / "theirs.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    config = json.loads((folder / "config.json").read_text())
    parts = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model", "AutoModel": "Base"}
    config |= {"model_type": "theirs", "auto_map": {key: f"theirs.{name}" for key, name in parts.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    "load", [load_base, load_tokenizer, lambda name: lazy_encode(name)(["x"])], ids=["model", "tokenizer", "encoder"]
)
def test_code_of_a_repository_is_never_run(remote, monkeypatch, load):
    def asked(*_):
        raise AssertionError("a question at the terminal")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(BigrecError, match="needs Python code from its own repository, which is never run"):
        load(str(remote))
    assert not (remote.parent / "ran").exists()


def test_the_metric_alone_does_not_run_it_either(remote):
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_encoder(str(remote))
    assert not (remote.parent / "ran").exists()


def test_a_wrong_quantization_is_an_error(tiny_model_dir):
    with pytest.raises(BigrecError, match="quantization is '5bit': choose none, 8bit or 4bit"):
        load_base(tiny_model_dir, quantization="5bit")
