"""RecBole's SASRec on a run's own examples, to check ours: same training targets, histories, catalog and metric.

    pip install --no-deps --target recbole recbole==1.2.1 colorlog colorama texttable thop tabulate plotly
    PYTHONPATH=recbole python scripts/check_sasrec.py runs/study-movielens_smollm2

The network and its loss (cross-entropy over all items) are RecBole's class, at RecBole's default sizes and dropout;
batches, early stopping on validation NDCG@10 and ranks are plain PyTorch, written here. Prints HR@K and NDCG@K on the
run's test examples beside those of the run's own `sasrec`.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import torch

from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import sample_examples

DEFAULTS = {
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": 64,
    "inner_size": 256,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "loss_type": "CE",
    "MAX_ITEM_LIST_LENGTH": 10,
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "device": "cpu",
}


def recbole_model(n_items: int) -> torch.nn.Module:
    """RecBole's SASRec over items 1 .. n_items (0 is padding), without RecBole's data and training machinery."""
    sys.modules["torch.utils.tensorboard"] = MagicMock()  # imported by RecBole's logging, not used
    from recbole.model.sequential_recommender.sasrec import SASRec

    return SASRec(DEFAULTS, types.SimpleNamespace(num=lambda field: n_items + 1))


def padded(histories: list[list[int]], length: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, length) item numbers, the newest `length` of each history first to last, 0 behind; and their counts."""
    table = torch.zeros(len(histories), length, dtype=torch.long)
    counts = torch.ones(len(histories), dtype=torch.long)
    for row, history in enumerate(histories):
        items = [item + 1 for item in history[-length:]]
        table[row, : len(items)] = torch.tensor(items, dtype=torch.long)
        counts[row] = max(len(items), 1)
    return table, counts


@torch.inference_mode()
def ranks(model: torch.nn.Module, histories: list[list[int]], targets: list[int]) -> np.ndarray:
    """(n,) 0-based ranks of the targets among all items; ties go to the lower catalog row."""
    model.eval()
    found = []
    for start in range(0, len(targets), 1000):
        items, counts = padded(histories[start : start + 1000])
        scores = model.full_sort_predict({"item_id_list": items, "item_length": counts})[:, 1:]
        target = torch.tensor(targets[start : start + 1000])
        own = scores.gather(1, target[:, None])
        before = torch.arange(scores.shape[1]) < target[:, None]
        found.append(((scores > own) | ((scores == own) & before)).sum(dim=1))
    return torch.cat(found).numpy()


def ndcg(rank: np.ndarray, k: int) -> float:
    return float(np.mean((rank < k) / np.log2(rank + 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder with data/ and sasrec/")
    parser.add_argument("--epochs", type=int, default=100, help="at most (default: 100)")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better NDCG@10 (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = str(options.run / "data")
    train = load_config(data, "default", "train")
    items, counts = padded(train["history"][:])
    targets = torch.tensor(train["target"][:]) + 1
    _, valid_targets, valid_histories = sample_examples(data, "validation", 5000)
    rankings = pq.read_table(options.run / "sasrec" / "rankings.parquet", columns=["example_id"])
    wanted = rankings["example_id"].to_pylist()
    test = load_config(data, "default", "test")
    row_of = {example_id: row for row, example_id in enumerate(test["example_id"][:])}
    test = test.select([row_of[example_id] for example_id in wanted])

    model = recbole_model(len(load_config(data, "items", "train")))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, best_state, waited = -1.0, {}, 0
    for epoch in range(options.epochs):
        model.train()
        for batch in torch.randperm(len(targets)).split(2048):
            optimizer.zero_grad()
            interaction = {"item_id_list": items[batch], "item_length": counts[batch], "item_id": targets[batch]}
            model.calculate_loss(interaction).backward()
            optimizer.step()
        value = ndcg(ranks(model, valid_histories, valid_targets), 10)
        print(f"epoch {epoch}: validation NDCG@10 {value:.4f}", flush=True)
        waited = 0 if value > best else waited + 1
        if value > best:
            best, best_state = value, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        elif waited >= options.patience:
            break
    model.load_state_dict(best_state)
    rank = ranks(model, test["history"][:], test["target"][:])
    ours = json.loads((options.run / "sasrec" / "results.json").read_text())
    for k in (1, 5, 10, 20, 50):
        theirs = {"hr": float(np.mean(rank < k)), "ndcg": ndcg(rank, k)}
        for metric, value in theirs.items():
            print(f"{metric}@{k}: RecBole {value:.4f}, ours {ours[f'{metric}@{k}']:.4f}")


if __name__ == "__main__":
    main()
