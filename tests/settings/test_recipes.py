"""Recipes: strict parsing, every shipped recipe, its tiny twin, the published parameter counts."""

import typing
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.ground import stage as ground
from bigrec_hf.hub import download
from bigrec_hf.models.loading import lora_config
from bigrec_hf.settings import SECTIONS, DownloadSettings
from bigrec_hf.settings.field import LIMITS, check_value
from bigrec_hf.settings.flags import add_section_arguments
from bigrec_hf.settings.former import RETIRED
from bigrec_hf.settings.recipes import (
    build_settings,
    coerce,
    field_types,
    read_recipe,
    to_yaml,
)
from bigrec_hf.sft import stage as sft
from tests.helpers.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "_base" not in path.parts)
SHIPPED = [
    path for path in RECIPES if not {"quickstart", "study", "own_data"} & set(path.parts)
]  # the reference's settings
FAMILIES = {
    "huggyllama/llama-7b": "llama",
    "codellama/CodeLlama-7b-Instruct-hf": "llama",
    "Qwen/Qwen2-0.5B": "qwen2",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2",
    "Qwen/Qwen2.5-3B-Instruct": "qwen2",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2",
}


def recipe_id(path):
    return str(path.relative_to(ROOT / "recipes"))


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


HUB_TOKEN = "hf_" + "z9Y8" * 8


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sft", "trainer_args", {"hub_token": HUB_TOKEN}),
        ("sft", "trainer_args", {"hub_token": "of-another-form"}),
        ("sft", "trainer_args", {"run_name": f"me {HUB_TOKEN}"}),
        ("sft", "trainer_args", {"dataset_kwargs": {"inner": [HUB_TOKEN]}}),
        ("sft", "trainer_args", {HUB_TOKEN: 1}),
        ("generate", "vllm_args", {"hf_token": "of-another-form"}),
        ("generate", "vllm_args", {"api_key": "of-another-form"}),
        ("generate", "vllm_args", {"hf_overrides": {"x": HUB_TOKEN}}),
        ("model", "base_model", f"https://me:{HUB_TOKEN}@host/model"),
        ("data", "train_json", [HUB_TOKEN]),
        ("run", "run_dir", f"runs/{HUB_TOKEN}"),
        ("generate", "vllm_args", {"seed": "in-the-environment"}),
    ],
)
def test_tokens_are_refused_wherever_they_are_given(tmp_path, monkeypatch, section, key, value):
    monkeypatch.setenv("HF_TOKEN", "in-the-environment")
    recipe = write(tmp_path, "a.yaml", yaml.safe_dump({section: {key: value}}))
    for arguments in ((recipe, {}), (None, {key: value})):
        with pytest.raises(BigrecError, match="is an access token") as caught:
            build_settings(*arguments)
        assert not any(secret in str(caught.value) for secret in (HUB_TOKEN, "another-form", "in-the-env"))


def test_settings_that_only_sound_like_tokens_are_taken():
    args = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "hub_token": None, "max_grad_norm": 0.3}
    assert build_settings(None, {"trainer_args": args})["sft"].trainer_args == args


@pytest.mark.parametrize("key", ["trainer_args", "vllm_args"])
def test_code_of_a_repository_is_never_asked_for(key):
    with pytest.raises(BigrecError, match="code of a repository is never run"):
        build_settings(None, {key: {"model_init_kwargs": {"trust_remote_code": True}}})


def test_a_broken_mapping_with_a_token_is_not_repeated(capsys):
    assert cli.main(["sft", "--trainer_args", f"{{hub_token: {HUB_TOKEN}"]) == 2
    assert HUB_TOKEN not in capsys.readouterr().err


BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BILLION, r"the alias \*a0 is not supported"),
        ("base: &base {epochs: 1}\nsft: *base", "write its value out, or use `extends`"),
        ("sft: " + "[" * 3000, "is nested too deep: it has sections"),
        ("sft: " + "{a: " * 3000, "is nested too deep"),
        ("sft: {sample: 2026-99-99}", "is not valid YAML"),
        (f"sft: {{sample: {'9' * 5000}}}", "is not valid YAML|expected int"),
        ("sft: {sample: \x00}", "is not valid YAML"),
        ("? [a]\n: b", "is not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(BigrecError, match=message) as caught:
        read_recipe(write(tmp_path, "a.yaml", text))
    assert "a.yaml" in str(caught.value) and "\n" not in str(caught.value)


class TestReading:
    def test_own_values_win_over_parents_and_later_parents_over_earlier(self, tmp_path):
        write(tmp_path, "a.yaml", "sft: {epochs: 1, lora_r: 1, sample: 1}\nmodel: {dtype: float32}")
        write(tmp_path, "b.yaml", "sft: {lora_r: 2, sample: 2}")
        child = write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]\nsft: {sample: 3}")
        assert read_recipe(child) == {"sft": {"epochs": 1.0, "lora_r": 2, "sample": 3}, "model": {"dtype": "float32"}}

    def test_retired_settings_are_ignored_with_one_line(self, tmp_path, capsys, monkeypatch):
        child = write(tmp_path, "c.yaml", "sft: {streaming: true, sample: 3}")
        assert read_recipe(child) == {"sft": {"sample": 3}}
        assert capsys.readouterr().err == (
            f"warning: streaming in section `sft` of {child} is ignored, remove it: {RETIRED['streaming']}\n"
        )
        seen = []
        monkeypatch.setattr(sft, "main", lambda **settings: seen.append(settings["sft"].sample))
        assert cli.main(["sft", "--sample", "7", "--shuffle_buffer", "20", "--streaming"]) == 0
        warnings = capsys.readouterr().err.splitlines()
        assert seen == [7] and len(warnings) == 2
        assert f"warning: streaming on the command line is ignored, remove it: {RETIRED['streaming']}" in warnings
        assert not set(RETIRED) & {field.name for section in SECTIONS.values() for field in fields(section)}

    def test_old_names_are_read_with_one_line(self, tmp_path, capsys, monkeypatch):
        child = write(tmp_path, "c.yaml", "ground: {exclude_history: true}")
        assert read_recipe(child) == {"ground": {"exclude": "history"}}
        line = "is now exclude: history\n"
        assert capsys.readouterr().err == f"warning: exclude_history in section `ground` of {child} {line}"
        assert read_recipe(write(tmp_path, "d.yaml", "ground: {exclude_history: false}"))["ground"]["exclude"] == "none"
        with pytest.raises(BigrecError, match=r"exclude_history in section `ground` of .* is 'seen': expected bool"):
            read_recipe(write(tmp_path, "e.yaml", "ground: {exclude_history: seen}"))
        seen = []
        monkeypatch.setattr(ground, "main", lambda **settings: seen.append(settings["ground"].exclude))
        capsys.readouterr()
        assert cli.main(["ground", "--exclude_history"]) == 0
        assert capsys.readouterr().err == f"warning: exclude_history on the command line {line}"
        assert cli.main(["ground", "--exclude_history", "false", "--exclude", "seen"]) == 0
        assert cli.main(["ground", "--config", str(child)]) == 0
        assert seen == ["history", "seen", "history"]
        assert cli.main(["ground", "--exclude", "all"]) == 2

    def test_old_names_of_download_are_read_with_one_line(self, tmp_path, capsys, monkeypatch):
        recipe = write(tmp_path, "c.yaml", "download: {include: '*.json', exclude: [a, b]}\nground: {exclude: seen}")
        sections = read_recipe(recipe)
        assert sections["download"] == {"include_files": ["*.json"], "exclude_files": ["a", "b"]}
        assert sections["ground"] == {"exclude": "seen"}
        shown = [
            f"warning: {key} in section `download` of {recipe} is now {key}_files" for key in ("include", "exclude")
        ]
        assert capsys.readouterr().err.splitlines() == shown
        found = []
        monkeypatch.setattr(download, "main", lambda **settings: found.append(settings["download"]))
        assert cli.main(["download", "--include", "*.json", "--exclude", "*.bin", "*.h5"]) == 0
        shown = [f"warning: {key} on the command line is now {key}_files" for key in ("include", "exclude")]
        assert capsys.readouterr().err.splitlines() == shown
        assert cli.main(["download", "--include_files", "*.json", "--exclude_files", "*.bin", "*.h5"]) == 0
        assert not capsys.readouterr().err
        assert found[0] == found[1] == DownloadSettings(include_files=["*.json"], exclude_files=["*.bin", "*.h5"])

    def test_a_parent_may_serve_two_children_of_one_recipe(self, tmp_path):
        write(tmp_path, "base.yaml", "sft: {epochs: 1}")
        write(tmp_path, "a.yaml", "extends: base.yaml\nsft: {lora_r: 1}")
        write(tmp_path, "b.yaml", "extends: base.yaml\nsft: {sample: 2}")
        child = write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]")
        assert read_recipe(child) == {"sft": {"epochs": 1.0, "lora_r": 1, "sample": 2}}

    def test_parents_are_relative_to_the_recipe(self, tmp_path):
        (tmp_path / "deep" / "er").mkdir(parents=True)
        write(tmp_path, "base.yaml", "sft: {epochs: 2}")
        child = write(tmp_path / "deep" / "er", "c.yaml", "extends: ../../base.yaml")
        assert read_recipe(child) == {"sft": {"epochs": 2.0}}

    @pytest.mark.parametrize(
        "text, words",
        [
            ("sft: {learning_rte: 1}", "did you mean 'learning_rate'"),
            ("sfft: {epochs: 1}", "did you mean 'sft'"),
            ("model: {epochs: 1}", "belongs in section `sft`"),
            ("epochs: 1", "belongs in section `sft`"),
            ("sft: {zzz: 1}", "valid keys: objective"),
            ("sft: {epochs: many}", "epochs in section `sft` .* 'many': expected float"),
            ("sft: {lora_r: 1.5}", "expected int"),
            ("sft: {packing: 1}", "expected bool"),
            ("sft: {packing: 'yes'}", "expected bool"),
            ("sft: {trainer_args: 3}", "expected dict"),
            ("sft: [1]", "must be a mapping"),
            ("sft:", "must be a mapping"),
            ("[1]", "must map sections"),
            ("sft: {", "not valid YAML"),
            ("model: {quantization: 4bits}", "did you mean '4bit'"),
            ("rerank: {texts: scores}", "is 'scores': the stage `pool` combines"),
            ("generate: {decoding: beamsearch}", "did you mean 'beam'|choose one of"),
            ("sft: {epochs: 1, epochs: 2}", "key 'epochs' occurs twice.* line 1"),
            ("sft: {epochs: 1}\nmodel: {dtype: auto}\nsft: {sample: 2}", "key 'sft' occurs twice.* line 3"),
            ("sft: {sample: -1}", r"sample in section `sft` of .* is -1: expected at least 0$"),
            ("sft: {epochs: 0}", "epochs .* is 0.0: expected above 0$"),
            ("sft: {learning_rate: .nan}", "learning_rate .* is nan: expected above 0"),
            ("sft: {learning_rate: .inf}", "learning_rate .* is inf: expected above 0"),
            ("sft: {lora_dropout: 1}", "lora_dropout .* is 1.0: expected at least 0, below 1"),
            ("generate: {length_penalty: .nan}", "length_penalty .* is nan: expected a finite number"),
            ("score: {ks: [1, 0]}", "ks .* holds 0: expected at least 1"),
            ("run: {seed: 4294967296}", "seed .* is 4294967296: expected at least 0, at most 4294967295"),
            (f"sft: {{sample: 1{'0' * 400}}}", "sample .* expected int"),
            ("extends: {a: b}", "a path or a list of paths"),
            ("extends: [1]", "a path or a list of paths"),
            ("extends: " + "x" * 300, "x' does not exist"),
            ("extends: nowhere.yaml", "nowhere.yaml' does not exist"),
            ("extends: recipe.yaml", "extends itself"),
        ],
    )
    def test_mistakes(self, tmp_path, text, words):
        path = write(tmp_path, "recipe.yaml", text)
        with pytest.raises(BigrecError, match=words):
            read_recipe(path)

    def test_a_circle_of_two(self, tmp_path):
        write(tmp_path, "a.yaml", "extends: b.yaml")
        path = write(tmp_path, "b.yaml", "extends: [a.yaml]")
        with pytest.raises(BigrecError, match="extends itself"):
            read_recipe(path)

    def test_a_missing_recipe(self):
        with pytest.raises(BigrecError, match="does not exist"):
            read_recipe("nowhere.yaml")

    def test_an_exponent_without_a_point_is_a_number(self, tmp_path):
        # YAML 1.1 reads 1e-4 as a string
        assert read_recipe(write(tmp_path, "r.yaml", "sft: {learning_rate: 1e-4, sample: 1e3}")) == {
            "sft": {"learning_rate": 1e-4, "sample": 1000}
        }

    def test_one_value_stands_for_a_list_of_one(self, tmp_path):
        assert read_recipe(write(tmp_path, "r.yaml", "data: {dataset: a/b}")) == {"data": {"dataset": ["a/b"]}}

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_numbers_survive_as_text(self, number):
        assert coerce(repr(number), float, "x") == number

    @given(st.integers(-(10**9), 10**9))
    def test_whole_numbers_survive(self, number):
        assert coerce(str(number), int, "x") == coerce(float(number), int, "x") == number


class TestBuildSettings:
    def test_flags_win_over_the_recipe(self, tmp_path):
        path = write(tmp_path, "r.yaml", "sft: {epochs: 2, lora_r: 4}")
        built = build_settings(path, {"epochs": 7.0, "seed": 5})
        assert (built["sft"].epochs, built["sft"].lora_r, built["run"].seed) == (7.0, 4, 5)

    def test_an_unknown_flag(self):
        with pytest.raises(BigrecError, match="did you mean 'epochs'"):
            build_settings(None, {"epoch": 1})

    @pytest.mark.parametrize(
        "key, value, words",
        [
            ("text_sample", -1, "--text_sample is -1: expected at least 0"),
            ("seed", -1, "--seed is -1: expected at least 0, at most 4294967295"),
            ("confidence", 1.0, "--confidence is 1.0: expected above 0, below 1"),
            ("ks", [5, 0], "--ks holds 0: expected at least 1"),
            ("debias_lm_weights", [0.5, float("nan")], "--debias_lm_weights holds nan: expected at least 0, at most 1"),
        ],
    )
    def test_flags_have_the_same_limits(self, key, value, words):
        with pytest.raises(BigrecError, match=f"^{words}$"):
            build_settings(None, {key: value})

    def test_every_number_but_one_has_limits_that_its_default_keeps(self):
        free = set()
        for name, section in SECTIONS.items():
            for item in fields(section):
                if {int, float} & set(typing.get_args(field_types(name)[item.name]) or [field_types(name)[item.name]]):
                    free |= set() if set(LIMITS) & set(item.metadata) else {item.name}
                check_value(section, item.name, getattr(build_settings(None, {})[name], item.name), item.name)
        assert free == {"length_penalty"}

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, "runs/mine"),
            ({"sample": 16}, "runs/mine"),  # as the recipe has it
            ({"epochs": 2.0}, "runs/mine"),  # not among `names_run`
            ({"sample": 64}, "runs/mine-sample-64"),
            ({"base_model": "Qwen/Qwen2-0.5B@main", "sample": 0}, "runs/mine-base_model-Qwen2-0.5B_main-sample-0"),
            ({"base_model": "./models/tiny/"}, "runs/mine-base_model-tiny"),
            ({"sample": 64, "run_dir": "here"}, "here"),
        ],
    )
    def test_an_override_gives_a_run_its_own_folder(self, given, expected, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("sft: {sample: 16}\nmodel: {base_model: a/b}\n")
        assert build_settings(path, given, ("base_model", "sample"))["run"].run_dir == expected
        assert build_settings(path, given)["run"].run_dir in ("runs/mine", "here")  # other stages find the recipe's run

    @pytest.mark.parametrize("key", ["run_dir", "adapter_dir", "output_dir"])
    @pytest.mark.parametrize("place", ["file", "file/deep/run"])
    def test_a_folder_to_write_into_that_is_a_file(self, tmp_path, key, place):
        write(tmp_path, "file", "")
        with pytest.raises(BigrecError, match=rf"--{key} is '.*{place}', but .*file is a file: name another folder"):
            build_settings(None, {key: str(tmp_path / place)})

    def test_help_shows_the_range_where_it_is_not_obvious(self):
        import argparse

        parser = argparse.ArgumentParser(prog="x", formatter_class=lambda prog: argparse.HelpFormatter(prog, width=300))
        add_section_arguments(parser, "score", {})
        text = parser.format_help()
        assert "level of the intervals; above 0, below 1 (default: 0.95)" in text
        assert "0 = none (default: 1000)" in text

    def test_evaluate_names_the_catalogs_encoding_as_prepare_does(self):
        from bigrec_hf.cli import build_parser

        assert build_parser("evaluate").parse_args(["--encoding", "latin-1"]).catalog_encoding == "latin-1"

    def test_places_follow_the_run_folder(self, tmp_path):
        built = build_settings(None, {"run_dir": "runs/x", "source": "movielens"})
        assert built["prepare"].prepared_dir == "runs/x/data" and built["data"].dataset == ["runs/x/data"]
        assert built["sft"].adapter_dir == "runs/x/adapter"

    def test_field_names_are_unique_across_sections(self):
        names = [item.name for section in SECTIONS.values() for item in fields(section)]
        assert len(names) == len(set(names))

    def test_every_default_has_its_fields_type(self, tmp_path):
        defaults = build_settings(None, {})
        path = write(tmp_path, "r.yaml", to_yaml(defaults))
        assert build_settings(path, {"run_dir": None})["generate"] == defaults["generate"]
        for name, section in defaults.items():  # 20 and 20.0 are equal, but not in a fingerprint
            read = vars(build_settings(path, {})[name])
            assert all(repr(read[key]) == repr(value) for key, value in vars(section).items() if value is not None)

    def test_every_field_has_help(self):
        import argparse

        for section in SECTIONS:
            parser = argparse.ArgumentParser()
            add_section_arguments(parser, section, {})
            assert parser.format_help()


class TestShippedRecipes:
    def test_seven_models_on_two_domains(self):
        models = {(path.parts[-3], build_settings(path, {})["model"].base_model) for path in SHIPPED}
        assert models == {(domain, model) for domain in ("movie", "game") for model in FAMILIES}

    @pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
    def test_parses_strictly_and_names_its_hardware(self, path):
        built = build_settings(path, {})
        assert path.read_text().startswith("# hardware: ")
        assert built["run"].run_dir == "runs/" + "-".join(path.relative_to(ROOT / "recipes").with_suffix("").parts)
        assert recipe_id(path) in (ROOT / "recipes" / "README.md").read_text()

    def test_base_files_parse_and_are_all_used(self):
        used = "".join(path.read_text() for path in (ROOT / "recipes").rglob("*.yaml"))
        for path in (ROOT / "recipes" / "_base").glob("*.yaml"):
            read_recipe(path)
            assert path.name in used

    @pytest.mark.parametrize("path", SHIPPED, ids=recipe_id)
    def test_reference_hyper_parameters(self, path):
        built = build_settings(path, {})
        sft, prompt, generate, data = (asdict(built[name]) for name in ("sft", "prompt", "generate", "data"))
        assert (sft["lora_r"], sft["lora_alpha"], sft["lora_dropout"]) == (8, 16, 0.05)
        assert sft["lora_target_modules"] == ["q_proj", "v_proj"]
        assert (sft["sample"], sft["global_batch_size"], sft["micro_batch_size"]) == (1024, 128, 8)
        assert sft["learning_rate"] == 1e-4 and sft["completion_only"] is True
        first = built["model"].quantization == "8bit"
        assert (sft["warmup_steps"], sft["patience"]) == ((20, 5) if first else (0.05, 15))
        assert sft["epochs"] == (10 if "Qwen2.5" in built["model"].base_model else 5)
        assert sft["activation_checkpointing"] is ("7b" in built["model"].base_model.lower())
        assert prompt["max_length"] == 1024 and prompt["max_history"] == 10
        assert prompt["train_prompt"].startswith("chat" if "Qwen" in built["model"].base_model else "alpaca")
        assert data["eval_sample"] == 5000 and built["run"].seed == 0
        if path.parts[-3] == "movie":
            assert (generate["decoding"], generate["num_beams"], built["prepare"].preset) == ("beam", 4, "bigrec-movie")
            assert generate["num_return_sequences"] in (0, 4)
        else:
            assert (generate["decoding"], built["prepare"].preset) == ("sample", "bigrec-game")
            assert (generate["temperature"], generate["top_p"], generate["sample_top_k"]) == (0.2, 0.95, 40)
            assert generate["max_new_tokens"] == 64

    @pytest.mark.parametrize("path", SHIPPED, ids=recipe_id)
    def test_variant_in_the_file_name_is_the_precision(self, path):
        quantization = build_settings(path, {})["model"].quantization
        assert path.stem == "sft_" + {"none": "16bit"}.get(quantization, quantization)

    @pytest.mark.parametrize("path", SHIPPED, ids=recipe_id)
    def test_tiny_twin_trains(self, path):
        built = build_settings(path, {})
        sft = built["sft"]
        twin = tiny_model(FAMILIES[built["model"].base_model], spread=0.05)
        model = get_peft_model(
            twin,
            lora_config(
                r=sft.lora_r,
                alpha=sft.lora_alpha,
                dropout=sft.lora_dropout,
                target_modules=sft.lora_target_modules,
            ),
        )
        # per layer: q 64 -> 64 and v 64 -> 32, each with A (r x in) and B (out x r)
        assert model.get_nb_trainable_parameters()[0] == 2 * (8 * (64 + 64) + 8 * (64 + 32))
        ids = torch.arange(10, 26)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients.values())


# config.json of the published models, as far as it decides the shapes
LLAMA_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    tie_word_embeddings=False,
)
CODELLAMA_7B = LlamaConfig(**{**LLAMA_7B.to_dict(), "vocab_size": 32016})
QWEN2_05B = Qwen2Config(
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    "config, recipe, trainable, total",
    [
        (LLAMA_7B, "movie/llama-7b/sft_8bit.yaml", 4_194_304, 6_742_609_920),
        # 16 more rows in the embedding and in the head than llama-7b
        (CODELLAMA_7B, "movie/codellama-7b-instruct/sft_8bit.yaml", 4_194_304, 6_742_609_920 + 2 * 16 * 4096),
        (QWEN2_05B, "movie/qwen2-0.5b/sft_8bit.yaml", 540_672, 494_573_440),
    ],
    ids=["llama-7b", "CodeLlama-7b-Instruct", "Qwen2-0.5B"],
)
def test_parameter_counts_of_the_real_models(config, recipe, trainable, total):
    sft = build_settings(ROOT / "recipes" / recipe, {})["sft"]
    with torch.device("meta"):  # accelerate's init_empty_weights would count a tied head twice
        base = AutoModelForCausalLM.from_config(config)
        adapter = lora_config(
            r=sft.lora_r, alpha=sft.lora_alpha, dropout=sft.lora_dropout, target_modules=sft.lora_target_modules
        )
        model = get_peft_model(base, adapter)
    assert model.get_nb_trainable_parameters() == (trainable, total)
