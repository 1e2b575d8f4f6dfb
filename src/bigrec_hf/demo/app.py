"""The page: titles in, recommended items out, for one recommender or several side by side (Gradio 6).

    from bigrec_hf import Recommender
    from bigrec_hf.demo.app import build
    build({"mine": Recommender.from_pretrained("user/adapter")}).launch()

The same function answers over HTTP under `/recommend` (`gradio_client`, or the page's "Use via API").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.hub.recommender import Recommendation, Recommender

MOST_ITEMS = 50  # of one answer
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model computes one answer
CSS = "footer {margin-top: 1rem} .generated textarea {font-weight: 600}"


def answer(recommender: Recommender, history: Sequence[str], top_k: int, exclude_seen: bool) -> Recommendation:
    """Return the recommendation for one history. Raises gradio.Error with the one line of a BigrecError."""
    try:
        return recommender.recommend(list(history or []), int(top_k), exclude_seen=exclude_seen)
    except BigrecError as error:
        raise gr.Error(str(error), print_exception=False) from error


def records(recommender: Recommender, found: Recommendation) -> list[dict[str, Any]]:
    """Return one record per item, best first: rank (from 1), item_id, title, score, and train_count where known."""
    counts = recommender.train_counts
    return [
        {"rank": rank, "item_id": item.item_id, "title": item.title, "score": round(item.score, 4)}
        | ({} if counts is None else {"train_count": int(counts[item.row])})
        for rank, item in enumerate(found.items, start=1)
    ]


def columns(recommender: Recommender) -> dict[str, str]:
    """Return the table's columns: key of a record -> heading."""
    score = "log-probability" if recommender.config.by_score else "minus distance"
    counted = {} if recommender.train_counts is None else {"train_count": "times in training"}
    return {"rank": "#", "title": "title", "score": score, **counted}


def popular_titles(recommender: Recommender, n: int) -> list[str]:
    """Return the `n` most frequent titles of the training data; the first of the catalog if frequencies are unknown."""
    counts = recommender.train_counts
    rows = np.arange(n) if counts is None else np.argsort(-counts, kind="stable")[:n]
    return [recommender.catalog.titles[row] for row in rows if row < len(recommender.catalog)]


def build(recommenders: Mapping[str, Recommender], examples: Sequence[Sequence[str]] = ()) -> gr.Blocks:
    """Return the page. `recommenders`: by the name that is shown; `examples`: histories to click on.

    Raises BigrecError if there is no recommender.
    """
    if not recommenders:
        raise BigrecError("there is nothing to show: name a run with --run_dir or an adapter with --adapter")
    first = next(iter(recommenders.values()))
    examples = examples or [popular_titles(first, 3)]

    def recommend(history: list[str], top_k: int = 10, exclude_seen: bool = True, name: str = "") -> dict[str, Any]:
        """Recommend items for one history of titles, oldest first.

        `name`: which recommender (default: the first). Returns the generated `text`, `items` (best first) and the
        `unknown` titles of the history, which are not in the catalog and are used as written.
        """
        if name and name not in recommenders:
            raise gr.Error(f"no recommender {name!r}: choose among {', '.join(recommenders)}", print_exception=False)
        recommender = recommenders[name] if name else first
        found = answer(recommender, history, top_k, exclude_seen)
        return {"text": found.text, "items": records(recommender, found), "unknown": found.unknown}

    with gr.Blocks(title="bigrec_hf", analytics_enabled=False) as page:
        gr.Markdown("# Recommendations by a language model\nChoose titles in the order in which they were consumed.")
        titles = list(dict.fromkeys(first.catalog.titles))
        history = gr.Dropdown(
            titles,
            value=list(examples[0]),
            multiselect=True,
            allow_custom_value=True,
            label="history, oldest first",
            info="type to search; a title that is not in the catalog is used as written",
            elem_id="history",
        )
        with gr.Row():
            top_k = gr.Slider(1, min(MOST_ITEMS, len(first.catalog)), value=10, step=1, label="items")
            exclude_seen = gr.Checkbox(True, label="leave out the items of the history", elem_id="exclude_seen")
        button = gr.Button("Recommend", variant="primary", elem_id="recommend")
        note = gr.Markdown()
        texts, tables = [], []
        with gr.Row():
            for name, recommender in recommenders.items():
                with gr.Column(min_width=320):
                    texts.append(gr.Textbox(label=f"generated by {name}", elem_classes="generated", interactive=False))
                    headings = list(columns(recommender).values())
                    tables.append(gr.Dataframe(headers=headings, label=name, interactive=False, wrap=True))

        def show(history: list[str], top_k: int, exclude_seen: bool) -> list[Any]:
            results = {name: answer(one, history, top_k, exclude_seen) for name, one in recommenders.items()}
            unknown = next(iter(results.values())).unknown
            rows = [
                [[record[key] for key in columns(one)] for record in records(one, results[name])]
                for name, one in recommenders.items()
            ]
            said = f"Not in the catalog, used as written: {', '.join(f'`{title}`' for title in unknown)}"
            return [said if unknown else "", *(found.text for found in results.values()), *rows]

        inputs = [history, top_k, exclude_seen]
        outputs = [note, *texts, *tables]
        gr.Examples([[list(example)] for example in examples], inputs=[history], label="histories to try")
        gr.on([button.click, exclude_seen.change], show, inputs, outputs, api_visibility="private", **ONE_AT_A_TIME)
        gr.api(recommend, api_name="recommend", **ONE_AT_A_TIME)
    return page
