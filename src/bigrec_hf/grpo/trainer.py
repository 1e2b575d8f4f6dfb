"""The trainer of reinforcement learning: groups of catalog titles instead of generated text.

TRL's GRPOTrainer accepts a rollout of one's own, but then repeats every prompt for each of its G completions, shuffles
these across the batch, and scores each as a padded row of its own over the whole vocabulary; its rewards are given
text. Our groups are rows of the catalog under an exact distribution, and one pass over prompt and title tree scores a
whole group (`grpo.tree`), so three of its methods would have to be replaced. This is the trainer of the dense
objective with another loss. A group is used for one step, so the policy that drew it is the one that is trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput

from bigrec_hf.generate.title_scores import TitleScorer
from bigrec_hf.grpo.data import CatalogTitles, PromptCollator, TrainingExamples
from bigrec_hf.grpo.groups import Groups, draw_groups, ranks_of
from bigrec_hf.grpo.losses import advantages, expected_loss, group_divergence, policy_loss, sdpo_loss
from bigrec_hf.grpo.rewards import WeightedRewards
from bigrec_hf.grpo.tree import TreeBatch, TreeBuilder, tree_log_probs
from bigrec_hf.metrics.ndcg_hr.scores import mean_scores
from bigrec_hf.sft.dense import ROWS
from bigrec_hf.sft.dense_trainer import DenseTrainer

EXPECTED, SDPO = "expected", "sdpo"


@dataclass(frozen=True)
class Objective:
    """What is learned from a group; the settings of section `grpo` of the same names."""

    method: str
    group_size: int
    sample: bool  # draw without replacement instead of taking the likeliest titles
    width: int
    target_in_group: bool
    curriculum_top: int
    scale: bool
    kl_beta: float
    dpo_beta: float


class GrpoTrainer(DenseTrainer):
    """Batches of a `grpo.data.PromptCollator`. Evaluation is that of DenseTrainer, nats per validation target, and
    NDCG and HR of the validation targets among all titles if `eval_k` is not 0.

    The reference of a divergence is the adapter as it was given to the trainer.
    """

    objective: Objective

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        rewards: WeightedRewards | None,
        examples: TrainingExamples,
        catalog: CatalogTitles,
        eval_k: int = 0,
        **options: Any,
    ) -> None:
        """`rewards`: None for the method sdpo; `eval_k`: cutoff of NDCG and HR on validation, 0 = neither."""
        super().__init__(*args, trie=catalog.tokens.trie, **options)
        self.objective = objective
        self.rewards = rewards
        self.examples = examples
        self.catalog = catalog
        self.eval_k = eval_k
        self.builder = TreeBuilder(catalog.tokens.trie, catalog.choices)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.reference = [parameter.detach().clone() for parameter in self.trained]
        self.scorer: TitleScorer | None = None

    @contextlib.contextmanager
    def at_reference(self) -> Iterator[None]:
        """The model with the weights of the starting adapter, without gradients."""
        current = [parameter.data for parameter in self.trained]
        try:
            for parameter, value in zip(self.trained, self.reference, strict=True):
                parameter.data = value.to(parameter.device)
            with torch.no_grad():
                yield
        finally:
            for parameter, value in zip(self.trained, current, strict=True):
                parameter.data = value

    def title_scorer(self) -> TitleScorer:
        """The scorer of all titles under the current weights, made once."""
        if self.scorer is None:
            assert self.head is not None and self.trie is not None
            network: Any = self.model  # a PeftModel, which forwards what it does not have to the model inside
            self.scorer = TitleScorer(
                network,
                self.head,
                self.trie,
                self.columns,
                width=self.objective.width,
                popularity=self.catalog.tokens.popularity,
            )
        return self.scorer

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop` with NDCG and HR at `eval_k` among its metrics, if asked for."""
        output = super().evaluation_loop(*args, **options)
        if self.eval_k and output.metrics is not None:
            prefix = options.get("metric_key_prefix", "eval")
            output.metrics.update({f"{prefix}_{name}": value for name, value in self.validation_scores().items()})
        return output

    def validation_scores(self) -> dict[str, float]:
        """Return ndcg@K and hr@K of the validation targets among all different titles, none of them excluded.

        The contexts are those of the validation loss. Each process ranks some of the examples.
        """
        collator, rows = cast(PromptCollator, self.data_collator), cast(Dataset, self.eval_dataset)[ROWS][:]
        own = rows[self.args.process_index :: self.args.world_size]
        ranks, size = [], self.args.per_device_eval_batch_size
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            log_p = self.title_scorer().log_probs([collator.prompt(example[:-1]) for example in batch])
            leaves = self.catalog.leaf_of_row[[example[-1] for example in batch]]
            ranks += [ranks_of(values, leaves[[i]])[0] - 1 for i, values in enumerate(log_p)]
        found = mean_scores(np.array(ranks, np.int64), [self.eval_k]) if ranks else {}
        names = (f"ndcg@{self.eval_k}", f"hr@{self.eval_k}")
        sums = torch.tensor([found.get(name, 0.0) * len(own) for name in names], device=self.args.device)
        means = (self.accelerator.reduce(sums, "sum") / len(rows)).tolist()
        return dict(zip(names, means, strict=True))

    def draw(self, prompts: list[list[int]], numbers: list[int]) -> tuple[Groups, dict[str, float]]:
        """Return the groups of these examples under the current policy, and figures about that policy."""
        wanted = self.objective
        log_p = self.title_scorer().log_probs(prompts)
        targets = self.examples.targets_of(numbers)
        groups = draw_groups(
            log_p,
            [self.examples.example_ids[number] for number in numbers],
            [self.examples.histories[number] for number in numbers],
            targets,
            self.catalog.row_of_leaf,
            self.catalog.leaf_of_row,
            size=wanted.group_size,
            noise=torch.rand(log_p.shape, dtype=torch.float64).numpy() if wanted.sample else None,
            add_target=wanted.target_in_group,
            always=wanted.method == SDPO,
        )
        at_target = log_p[np.arange(len(targets)), self.catalog.leaf_of_row[targets]]
        return groups, {
            "hit_rate": float((groups.target_ranks <= wanted.group_size).mean()),
            "target_in_group": float(groups.is_target.any(axis=1).mean()),
            "target_nats": float(-at_target.mean()),
            "entropy": float(-(np.exp(log_p) * log_p).sum(axis=1).mean()),
        }

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; `num_items_in_batch` counts the examples of the step on all devices.

        Examples without a gradient, or outside the curriculum, are not read again; they count in the mean as 0.
        """
        if "numbers" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        lengths = inputs["lengths"].tolist()
        prompts = [ids[:n] for ids, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
        groups, figures = self.draw(prompts, inputs["numbers"].tolist())
        coefficients = np.ones_like(groups.weights)
        useful = np.ones(len(prompts), bool)
        if self.rewards is not None:
            total, parts = self.rewards(groups)
            if self.objective.method == EXPECTED:
                coefficients = total
            else:
                coefficients = groups.weights * advantages(total, groups.weights, scale=self.objective.scale)
            figures["reward"] = float((groups.weights * total).sum(axis=1).mean())
            figures |= {f"reward_{name}": float((groups.weights * v).sum(axis=1).mean()) for name, v in parts.items()}
            flat = (coefficients == 0).all(axis=1)
            figures["zero_advantage"] = float(flat.mean())
            if not self.objective.kl_beta:
                useful = ~flat
        if self.objective.curriculum_top:
            useful &= groups.target_ranks <= self.objective.curriculum_top
        figures["used"] = float(useful.mean())
        kept = np.flatnonzero(useful) if useful.any() else np.array([0])  # several processes wait for each other
        loss, more = self.losses(model, [prompts[i] for i in kept], groups, kept, coefficients)
        loss = loss if useful.any() else 0 * loss
        self.note(figures | more)
        loss = loss / torch.as_tensor(len(prompts) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all processes
        return (loss, {}) if return_outputs else loss

    def losses(
        self,
        model: torch.nn.Module,
        prompts: list[list[int]],
        groups: Groups,
        kept: np.ndarray,
        coefficients: np.ndarray,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the summed loss of the groups of these numbers and figures about them.

        `coefficients` (B, G): weight times advantage of every title; its reward with the method expected.
        """
        device = self.args.device
        wanted = self.objective
        batch = self.builder.build(prompts, groups.rows[kept]).to(device)
        reference = None
        if wanted.method == SDPO or wanted.kl_beta:
            with self.at_reference():
                reference = self.log_probs(self.model, batch)
        log_p = self.log_probs(model, batch)
        if wanted.method == SDPO:
            assert reference is not None
            is_target = torch.from_numpy(groups.is_target[kept]).to(device)
            values, preferred = sdpo_loss(log_p, reference, is_target, beta=wanted.dpo_beta)
            return values.sum(), {
                "preferred": float(preferred.float().mean()),
                "kl": float(group_divergence(log_p.detach(), reference).mean()),
            }
        loss = expected_loss if wanted.method == EXPECTED else policy_loss
        values = loss(log_p, torch.from_numpy(coefficients[kept]).to(log_p))
        if reference is None:
            return values.sum(), {}
        divergence = group_divergence(log_p, reference)
        return (values + wanted.kl_beta * divergence).sum(), {"kl": float(divergence.detach().mean())}

    def log_probs(self, model: torch.nn.Module, batch: TreeBatch) -> torch.Tensor:
        """Return log p of the titles of a batch, (B, G) float32."""
        assert self.head is not None and self.trie is not None
        size = self.objective.group_size
        return tree_log_probs(model, self.head, batch, self.trie, self.columns, group_size=size, dtype=self.model.dtype)

    def note(self, figures: dict[str, float]) -> None:
        """Log figures, the mean over the processes."""
        names = sorted(figures)
        values = torch.tensor([figures[name] for name in names], dtype=torch.float32, device=self.args.device)
        for name, value in zip(names, self.accelerator.reduce(values, "mean").tolist(), strict=True):
            self._metrics["train"][name].append(value)
