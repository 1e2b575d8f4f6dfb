"""The page: titles in, recommended items out, for one run or adapter or several side by side (Gradio 6).

    from bigrec_hf.demo.app import build
    from bigrec_hf.recommend.rankers import Rankers
    build({"mine": Rankers("user/adapter")}).launch()

The same function answers over HTTP under `/recommend` (`gradio_client`, or the page's "Use via API").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.rankings import HYBRID
from bigrec_hf.demo.table import table
from bigrec_hf.hub.bundle import METHOD
from bigrec_hf.hub.histories import as_histories, check_top_k, choose_items
from bigrec_hf.hub.recommender import Recommendation
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.recommend.mixes import Histories
from bigrec_hf.recommend.priors import Prior
from bigrec_hf.recommend.rankers import CONSTRAINED, Rankers
from bigrec_hf.report.rows import method_label

MOST_ITEMS = 50  # of one answer
STEPS = 100  # of a slider of weights
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model computes one answer


def answer(
    rankers: Rankers,
    ranker: str,
    history: Sequence[str],
    top_k: int,
    exclude_seen: bool,
    prior_weight: float | None = None,
) -> Recommendation:
    """Return the recommendation of one ranker for one history. `prior_weight`: as for `Rankers.rank`.

    Raises gradio.Error with the one line of a BigrecError.
    """
    try:
        ((titles,), _) = as_histories(list(history or []))
        known = rankers.catalog.rows_by_title
        rows = [known.get(clean_title(title), (-1,))[0] for title in titles]
        choice = choose_items([titles], rankers.catalog, check_top_k(top_k), exclude_seen=exclude_seen)
        rank = rankers.rank(ranker, prior_weight)
        if ranker not in (METHOD, CONSTRAINED + HYBRID) and max(rows, default=-1) < 0:
            (found,) = rankers.popularity(1, choice)
        else:
            (found,) = rank(Histories([titles], [rows]), choice)
    except BigrecError as error:
        raise gr.Error(str(error), print_exception=False) from error
    unknown = [title for title, row in zip(titles, rows, strict=True) if row < 0]
    return Recommendation(found.texts[0] if found.texts else "", found.items, found.texts, found.scores, unknown)


def records(
    rankers: Rankers, ranker: str, found: Recommendation, prior_weight: float | None = None
) -> list[dict[str, Any]]:
    """Return one record per item, best first: rank (from 1), item_id, title, score; `probability` of a title, or its
    `distance` to the generated one, where the ranker is the language model alone; train_count where known."""
    counts = rankers.train_counts
    alone = ranker == METHOD and not prior_weight and rankers.bundle is not None
    rows = []
    for rank, item in enumerate(found.items, start=1):
        row: dict[str, Any] = {
            "rank": rank,
            "item_id": item.item_id,
            "title": item.title,
            "score": round(item.score, 4),
        }
        if item.distance is not None:
            row["distance"] = round(item.distance, 4)
        elif alone:
            row["probability"] = float(f"{math.exp(item.score):.4g}")
        if counts is not None:
            row["train_count"] = int(counts[item.row])
        rows.append(row)
    return rows


def popular_titles(rankers: Rankers, n: int) -> list[str]:
    """Return the `n` most frequent titles of the training data; the first of the catalog if frequencies are unknown."""
    counts = rankers.train_counts
    rows = np.arange(n) if counts is None else np.argsort(-counts, kind="stable")[:n]
    return [rankers.catalog.titles[row] for row in rows if row < len(rankers.catalog)]


def slider(prior: Prior | None) -> dict[str, Any]:
    """Return what the slider of a ranker's prior shows; it is hidden where there is none."""
    if prior is None:
        return {"visible": False}
    step = prior.usual / STEPS
    label = f"weight of {' + '.join(method_label(name) for name in prior.of.split(' + '))}"
    return {"visible": True, "label": label, "maximum": prior.usual, "step": step, "value": prior.chosen}


def weight_of(rankers: Rankers, ranker: str, value: float) -> float | None:
    """Return the weight that a slider asks for; None for the chosen one, or where it is hidden."""
    prior = rankers.prior(ranker)
    if prior is None or abs(value - prior.chosen) < prior.usual / STEPS / 2:
        return None
    return value


def build(shown: Mapping[str, Rankers], examples: Sequence[Sequence[str]] = ()) -> gr.Blocks:
    """Return the page. `shown`: runs and adapters by the name to show; `examples`: histories to click on.

    Raises BigrecError if there is nothing to show.
    """
    if not shown:
        raise BigrecError("there is nothing to show: name a run with --run_dir or an adapter with --adapter")
    first = next(iter(shown.values()))
    examples = examples or [popular_titles(first, 3)]

    def recommend(
        history: list[str],
        top_k: int = 10,
        exclude_seen: bool = True,
        ranker: str = METHOD,
        name: str = "",
        prior_weight: float | None = None,
    ) -> dict[str, Any]:
        """Recommend items for one history of titles, oldest first.

        `ranker`: the language model (finetuned), or another ranker of the run; `name`: which run or adapter (default:
        the first); `prior_weight`: of what the ranker mixes with the language model (default: the chosen one). Returns
        the generated `text`, `items` (best first) and the `unknown` titles of the history, which are not in the
        catalog.
        """
        if name and name not in shown:
            raise gr.Error(f"there is no {name!r} here: choose among {', '.join(shown)}", print_exception=False)
        rankers = shown[name] if name else first
        found = answer(rankers, ranker, history, top_k, exclude_seen, prior_weight)
        return {
            "text": found.text,
            "items": records(rankers, ranker, found, prior_weight),
            "unknown": found.unknown,
        }

    with gr.Blocks(title="bigrec_hf", analytics_enabled=False) as page:
        gr.Markdown("# Recommendations by a language model\nChoose titles in the order in which they were consumed.")
        history = gr.Dropdown(
            list(dict.fromkeys(first.catalog.titles)),
            value=list(examples[0]),
            multiselect=True,
            allow_custom_value=True,
            label="history, oldest first",
            info="type to search; a title that is not in the catalog is used as written",
            elem_id="history",
        )
        top_k = gr.Slider(1, min(MOST_ITEMS, len(first.catalog)), value=10, step=1, label="items")
        exclude_seen = gr.Checkbox(True, label="leave out the items of the history", elem_id="exclude_seen")
        button = gr.Button("Recommend", variant="primary", elem_id="recommend")
        choices, weights, tables = [], [], []
        with gr.Row():
            for name, rankers in shown.items():
                with gr.Column(min_width=320):
                    labels = [(method_label(ranker), ranker) for ranker in rankers.names()]
                    choices.append(
                        gr.Dropdown(labels, value=labels[0][1], label=f"{name}: ranked by", filterable=False)
                    )
                    weights.append(
                        gr.Slider(0, **{"value": 0.0, **slider(rankers.prior(labels[0][1]))}, elem_classes="prior")
                    )
                    tables.append(gr.HTML())

        def show(history: list[str], top_k: int, exclude_seen: bool, *given: Any) -> list[str]:
            chosen, values = given[: len(shown)], given[len(shown) :]
            found_tables = []
            for rankers, ranker, value in zip(shown.values(), chosen, values, strict=True):
                weight = weight_of(rankers, ranker, value)
                found = answer(rankers, ranker, history, top_k, exclude_seen, weight)
                found_tables.append(table(found.text, records(rankers, ranker, found, weight), found.unknown))
            return found_tables

        gr.Examples([[list(example)] for example in examples], inputs=[history], label="histories to try")
        inputs, outputs = [history, top_k, exclude_seen, *choices, *weights], tables
        private: dict[str, Any] = {"api_visibility": "private"}
        gr.on(
            [button.click, history.change, top_k.release, exclude_seen.change, *(weight.release for weight in weights)],
            show,
            inputs,
            outputs,
            trigger_mode="always_last",  # of changes that come while the model computes, the last
            **private,
            **ONE_AT_A_TIME,
        )
        for rankers, choice, weight in zip(shown.values(), choices, weights, strict=True):
            choice.change(
                lambda ranker, rankers=rankers: gr.update(**slider(rankers.prior(ranker))), choice, weight, **private
            ).then(show, inputs, outputs, **private, **ONE_AT_A_TIME)
        gr.api(recommend, api_name="recommend", **ONE_AT_A_TIME)
    return page
