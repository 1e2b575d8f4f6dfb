"""The page: titles in, recommended items out, for one run or adapter or several side by side (Gradio 6).

    from bigrec_hf.demo.app import build
    from bigrec_hf.recommend.rankers import Rankers
    build({"mine": Rankers("user/adapter")}).launch()

The same function answers over HTTP under `/recommend` (`gradio_client`, or the page's "Use via API").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.hub.bundle import METHOD
from bigrec_hf.hub.histories import as_histories, check_top_k, choose_items
from bigrec_hf.hub.recommender import Recommendation
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.recommend.rankers import Histories, Rankers

MOST_ITEMS = 50  # of one answer
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model computes one answer
CSS = "footer {margin-top: 1rem} .generated textarea {font-weight: 600}"
HEADINGS = {"rank": "#", "title": "title", "score": "score"}


def answer(rankers: Rankers, ranker: str, history: Sequence[str], top_k: int, exclude_seen: bool) -> Recommendation:
    """Return the recommendation of one ranker for one history.

    Raises gradio.Error with the one line of a BigrecError.
    """
    try:
        ((titles,), _) = as_histories(list(history or []))
        known = rankers.catalog.rows_by_title
        rows = [known.get(clean_title(title), (-1,))[0] for title in titles]
        choice = choose_items([titles], rankers.catalog, check_top_k(top_k), exclude_seen=exclude_seen)
        if ranker != METHOD and max(rows, default=-1) < 0:
            (found,) = rankers.popularity(1, choice)
        else:
            (found,) = rankers.rank(ranker)(Histories([titles], [rows]), choice)
    except BigrecError as error:
        raise gr.Error(str(error), print_exception=False) from error
    unknown = [title for title, row in zip(titles, rows, strict=True) if row < 0]
    return Recommendation(found.texts[0] if found.texts else "", found.items, found.texts, found.scores, unknown)


def records(rankers: Rankers, found: Recommendation) -> list[dict[str, Any]]:
    """Return one record per item, best first: rank (from 1), item_id, title, score, and train_count where known."""
    counts = rankers.train_counts
    return [
        {"rank": rank, "item_id": item.item_id, "title": item.title, "score": round(item.score, 4)}
        | ({} if counts is None else {"train_count": int(counts[item.row])})
        for rank, item in enumerate(found.items, start=1)
    ]


def columns(rankers: Rankers) -> dict[str, str]:
    """Return the table's columns: key of a record -> heading."""
    return HEADINGS if rankers.train_counts is None else {**HEADINGS, "train_count": "times in training"}


def popular_titles(rankers: Rankers, n: int) -> list[str]:
    """Return the `n` most frequent titles of the training data; the first of the catalog if frequencies are unknown."""
    counts = rankers.train_counts
    rows = np.arange(n) if counts is None else np.argsort(-counts, kind="stable")[:n]
    return [rankers.catalog.titles[row] for row in rows if row < len(rankers.catalog)]


def build(shown: Mapping[str, Rankers], examples: Sequence[Sequence[str]] = ()) -> gr.Blocks:
    """Return the page. `shown`: runs and adapters by the name to show; `examples`: histories to click on.

    Raises BigrecError if there is nothing to show.
    """
    if not shown:
        raise BigrecError("there is nothing to show: name a run with --run_dir or an adapter with --adapter")
    first = next(iter(shown.values()))
    examples = examples or [popular_titles(first, 3)]

    def recommend(
        history: list[str], top_k: int = 10, exclude_seen: bool = True, ranker: str = METHOD, name: str = ""
    ) -> dict[str, Any]:
        """Recommend items for one history of titles, oldest first.

        `ranker`: the language model (finetuned), or another ranker of the run; `name`: which run or adapter (default:
        the first). Returns the generated `text`, `items` (best first) and the `unknown` titles of the history, which
        are not in the catalog.
        """
        if name and name not in shown:
            raise gr.Error(f"there is no {name!r} here: choose among {', '.join(shown)}", print_exception=False)
        rankers = shown[name] if name else first
        found = answer(rankers, ranker, history, top_k, exclude_seen)
        return {"text": found.text, "items": records(rankers, found), "unknown": found.unknown}

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
        with gr.Row():
            top_k = gr.Slider(1, min(MOST_ITEMS, len(first.catalog)), value=10, step=1, label="items")
            exclude_seen = gr.Checkbox(True, label="leave out the items of the history", elem_id="exclude_seen")
        button = gr.Button("Recommend", variant="primary", elem_id="recommend")
        note = gr.Markdown()
        choices, texts, tables = [], [], []
        with gr.Row():
            for name, rankers in shown.items():
                with gr.Column(min_width=320):
                    choices.append(gr.Dropdown(rankers.names(), value=METHOD, label=f"ranker of {name}"))
                    texts.append(gr.Textbox(label="generated", elem_classes="generated", interactive=False))
                    headings = list(columns(rankers).values())
                    tables.append(gr.Dataframe(headers=headings, label=name, interactive=False, wrap=True))

        def show(history: list[str], top_k: int, exclude_seen: bool, *chosen: str) -> list[Any]:
            results = [
                answer(rankers, ranker, history, top_k, exclude_seen)
                for rankers, ranker in zip(shown.values(), chosen, strict=True)
            ]
            rows = [
                [[record[key] for key in columns(rankers)] for record in records(rankers, found)]
                for rankers, found in zip(shown.values(), results, strict=True)
            ]
            unknown = ", ".join(f"`{title}`" for title in results[0].unknown)
            said = f"Not in the catalog: {unknown}" if unknown else ""
            return [said, *(found.text for found in results), *rows]

        gr.Examples([[list(example)] for example in examples], inputs=[history], label="histories to try")
        gr.on(
            [button.click, exclude_seen.change, *(choice.change for choice in choices)],
            show,
            [history, top_k, exclude_seen, *choices],
            [note, *texts, *tables],
            api_visibility="private",
            **ONE_AT_A_TIME,
        )
        gr.api(recommend, api_name="recommend", **ONE_AT_A_TIME)
    return page
