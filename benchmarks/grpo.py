"""Reinforcement learning: groups of titles from the trie against sampling by `generate`, and what a step costs.

    python -m benchmarks.grpo --adapter runs/study-movielens_dense/adapter

MovieLens-100K, histories of up to ten short titles, SmolLM2-135M (with an adapter if one is given). The plain ways to
get a group are `generate` as TRL's GRPOTrainer calls it without vLLM (every prompt repeated for each completion, plain
sampling, at most the tokens of the longest title), and as many free beams. Both know no trie, and a model trained with
the loss trie seldom ends a title by itself, so their sequences run to that length. The plain training pass reads prompt
and title anew for every title of a group. Rewards of embeddings get random vectors: their values do not matter for the
time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.common import (
    BASE_MODEL,
    ML_100K,
    Row,
    alternate,
    arguments,
    best_dtype,
    peak_mib_in_child,
    seconds,
    set_threads,
    write_result,
)
from benchmarks.lm_data import bench_lora
from bigrec_hf.generate.title_scores import TitleScorer
from bigrec_hf.grpo.data import GrpoData, load_grpo
from bigrec_hf.grpo.groups import Groups, draw_groups
from bigrec_hf.grpo.percentile import ease_scores
from bigrec_hf.grpo.rewards import NAMES, WeightedRewards, load_rewards
from bigrec_hf.grpo.tree import TreeBuilder, tree_log_probs
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.loading import load_base, load_tokenizer, load_trainable
from bigrec_hf.models.trie_loss import token_columns
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.settings import GrpoSettings, PromptSettings

SIZE = 16  # titles per group
WIDTHS = (16, 64, 0)


def prepared_set() -> str:
    """MovieLens-100K, prepared once."""
    folder = Path(gettempdir()) / "bench-grpo-ml-100k"
    if not (folder / "facts.json").is_file():
        prepare_dataset("movielens", str(ML_100K), str(folder), preset="bigrec-movie", dataset_name="ml-100k")
    return str(folder)


def load_data(dataset: str) -> GrpoData:
    """Examples and titles as the recipe of the study has them."""
    prompt = PromptSettings(train_prompt="titles", short_titles=True, max_length=128)
    settings = GrpoSettings(grpo_sample=64, grpo_evals_per_epoch=0)
    return load_grpo(dataset, load_tokenizer(str(BASE_MODEL)), prompt, settings, seed=0)


def load_policy(adapter: str) -> torch.nn.Module:
    """The model with its adapter, or with a new one."""
    from peft import get_peft_model

    base = load_base(str(BASE_MODEL), dtype=best_dtype())
    return load_trainable(base, adapter) if adapter else get_peft_model(base, bench_lora())


class Step:
    """Everything that a step does with some prompts, and the plain ways."""

    def __init__(self, adapter: str, n_prompts: int, dataset: str) -> None:
        self.data, self.model = load_data(dataset), load_policy(adapter)
        self.numbers = list(range(n_prompts))
        self.prompts = [self.data.collator.prompt(self.data.examples.histories[number]) for number in self.numbers]
        self.trie = self.data.catalog.tokens.trie
        token_ids, self.columns = token_columns(self.trie)
        self.open = ExitStack()
        self.head = self.open.enter_context(catalog_head(self.model, token_ids))
        self.builder = TreeBuilder(self.trie, self.data.catalog.choices)

    def rollout(self, width: int) -> Groups:
        """Groups of the likeliest titles."""
        shares = self.data.catalog.tokens.popularity
        scorer = TitleScorer(self.model, self.head, self.trie, self.columns, width=width, popularity=shares)
        scorer.checked = True  # once in a training
        catalog, examples = self.data.catalog, self.data.examples
        return draw_groups(
            scorer.log_probs(self.prompts),
            [examples.example_ids[number] for number in self.numbers],
            [examples.histories[number] for number in self.numbers],
            examples.targets_of(self.numbers),
            catalog.row_of_leaf,
            catalog.leaf_of_row,
            size=SIZE,
        )

    def generate(self, *, sample: bool) -> torch.Tensor:
        """As many sequences from the whole vocabulary, (prompts * SIZE, tokens): sampled by GRPOTrainer's defaults, or
        beams."""
        prompts, options = self.prompts, {"num_beams": SIZE, "num_return_sequences": SIZE}
        if sample:
            prompts = [prompt for prompt in prompts for _ in range(SIZE)]
            options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        end = self.data.catalog.tokens.lists.end
        with torch.no_grad():
            return self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.trie.depth,
                do_sample=sample,
                disable_compile=True,
                eos_token_id=end,
                pad_token_id=end,
                **options,
            )[:, width:]

    def train(self, rows: np.ndarray, *, plain: bool) -> torch.Tensor:
        """Forward and backward pass; `plain`: one row per title. Returns log p, (prompts, SIZE)."""
        prompts, titles, size = self.prompts, rows, SIZE
        if plain:
            prompts, titles, size = [prompt for prompt in prompts for _ in range(SIZE)], rows.reshape(-1, 1), 1
        batch = self.builder.build(prompts, titles)
        log_p = tree_log_probs(
            self.model, self.head, batch, self.trie, self.columns, group_size=size, dtype=self.model.dtype
        )
        self.model.zero_grad()
        log_p.sum().backward()
        return log_p.detach().view(-1, SIZE)


def training_pass(plain: bool, adapter: str, n_prompts: int, dataset: str) -> Callable[[], torch.Tensor]:
    """For `peak_mib_in_child`."""
    step = Step(adapter, n_prompts, dataset)
    rows = step.rollout(16).rows
    return lambda: step.train(rows, plain=plain)


def group_of_titles(plain: bool, adapter: str, n_prompts: int, dataset: str) -> Callable[[], Any]:
    """For `peak_mib_in_child`: groups of the widest beams, or by `generate`."""
    step = Step(adapter, n_prompts, dataset)
    if plain:
        step.open.close()  # the model's own head
        return lambda: step.generate(sample=True)
    return lambda: step.rollout(64)


def all_rewards(step: Step) -> WeightedRewards:
    """Every reward of the package, once each; EASE for `percentile`."""
    n_items = step.data.catalog.tokens.n_items
    width = step.model.config.hidden_size
    return load_rewards(
        dict.fromkeys(NAMES, 1),
        lambda: ease_scores(step.data.sequences, n_items),
        lambda: np.random.default_rng(0).normal(size=(n_items, width)).astype(np.float32),
    )


def main() -> None:
    chosen = arguments(__doc__, adapter="", prompts=4, repeats=3)
    logging.set_verbosity_error()
    set_threads()
    dataset = prepared_set()
    step = Step(chosen.adapter, chosen.prompts, dataset)
    size = f"{chosen.prompts} prompts x {SIZE} titles, {best_dtype()}"
    with step.open:
        ways: dict[str, Callable[[], Any]] = {str(width): lambda w=width: step.rollout(w) for width in WIDTHS}
        exact = step.rollout(0)
        passes = {
            "tree": lambda: step.train(exact.rows, plain=False),
            "rows": lambda: step.train(exact.rows, plain=True),
        }
        taken, found = alternate(ways | passes, chosen.repeats)
        rewards = all_rewards(step)
        reward_s, _ = seconds(lambda: rewards(exact))
    free = {
        "sampled sequences": lambda: step.generate(sample=True),
        "free beams": lambda: step.generate(sample=False),
    }
    free_s, sequences = alternate(free, chosen.repeats)
    end = step.data.catalog.tokens.lists.end
    known = {tuple(ids) for ids in step.data.catalog.ids}
    rows = []
    for name, taken_free in free_s.items():
        texts = [tuple(ids[: ids.index(end) + 1]) if end in ids else () for ids in sequences[name].tolist()]
        groups = [texts[start : start + SIZE] for start in range(0, len(texts), SIZE)]
        distinct = sum(len(set(group) & known) for group in groups)
        for width in WIDTHS:
            same = np.mean(
                [len(set(a) & set(b)) / SIZE for a, b in zip(found[str(width)].rows, exact.rows, strict=True)]
            )
            note = f"width {width or 'all'}: {same:.0%} of the exact group; of {name} {distinct} are different titles"
            row = Row(
                f"grpo against {name}",
                size,
                width or len(step.data.catalog.ids),
                taken[str(width)],
                taken_free,
                note=note,
            )
            row.count, row.counted = chosen.prompts * SIZE, "titles"
            if name == "free beams" and width == SIZE:
                row.aim("time over free beams", row.ours_s / taken_free, most=1.15)
            rows.append(row)
    close = float((found["tree"] - found["rows"]).abs().max())
    tree = Row("grpo, training pass", size, SIZE, taken["tree"], taken["rows"], note=f"log p within {close:.2g}")
    tree.same = close < (0.5 if best_dtype() == "bfloat16" else 1e-3)
    options = {"adapter": chosen.adapter, "n_prompts": chosen.prompts, "dataset": dataset}
    tree.peak_mib = peak_mib_in_child(training_pass, plain=False, **options)
    tree.baseline_peak_mib = peak_mib_in_child(training_pass, plain=True, **options)
    for row in rows:
        if row.stage == "grpo against sampled sequences" and row.work == 64:
            row.peak_mib = peak_mib_in_child(group_of_titles, plain=False, **options)
            row.baseline_peak_mib = peak_mib_in_child(group_of_titles, plain=True, **options)
    rows += [tree, Row("grpo, all rewards", size, SIZE, reward_s)]
    write_result("grpo", rows, chosen.out, adapter=bool(chosen.adapter), tokens_of_a_sequence=step.trie.depth)


if __name__ == "__main__":
    main()
