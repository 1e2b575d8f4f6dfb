"""Demo of the metric (Gradio 6): paste ranked lists, or titles and a catalog, to get NDCG@K and HR@K."""

import json
from pathlib import Path

import evaluate
import gradio as gr

FOLDER = Path(__file__).parent
EXAMPLE = ("3 1 2\n2 3 1", "1\n2", "1 3")
TITLE_EXAMPLE = ("Toy Story\nStar Wars 4", "Toy Story (1995)\nStar Wars (1977)", "1 2")
CATALOG_EXAMPLE = "Toy Story (1995)\nHeat (1995)\nStar Wars (1977)\nFargo (1996)"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def _compute(config_name: str, **inputs) -> str:
    """The scores as indented JSON, or a one-line error."""
    try:
        metric = evaluate.load(str(FOLDER / "ndcg_hr.py"), config_name=config_name)
        return json.dumps(metric.compute(**inputs), indent=2)
    except (OSError, ValueError) as error:
        return f"Error: {error}"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(",", " ").split()]


def score_rankings(predictions: str, references: str, ks: str) -> str:
    """Score ranked lists: one list of integer ids per line (best first), one target id per line."""
    try:
        lists = [_numbers(line) for line in predictions.strip("\n").split("\n")]
        inputs = {"predictions": lists, "references": _numbers(references), "ks": _numbers(ks)}
    except ValueError:
        return "Error: ids and K must be whole numbers, separated by spaces or commas"
    return _compute("rankings", **inputs)


def score_titles(predictions: str, references: str, catalog: str, encoder: str, ks: str) -> str:
    """Score titles: one generated, true or catalog title per line."""
    try:
        cut_offs = _numbers(ks)
    except ValueError:
        return "Error: K must be whole numbers, separated by spaces or commas"
    return _compute(
        "titles",
        predictions=predictions.strip("\n").split("\n"),
        references=references.strip("\n").split("\n"),
        catalog=[title for title in catalog.split("\n") if title.strip()],
        encoder=encoder.strip(),
        ks=cut_offs,
    )


def build() -> gr.Blocks:
    """Build the page: one tab for each configuration whose inputs can be typed."""
    with gr.Blocks(title="NDCG and HR over a full catalog") as page:
        gr.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---", 2)[2])
        with gr.Tab("rankings"):
            fields = [
                gr.Textbox(EXAMPLE[0], lines=4, label="Ranked ids, one list a line, best first"),
                gr.Textbox(EXAMPLE[1], lines=4, label="Target id of each line"),
                gr.Textbox(EXAMPLE[2], label="K"),
            ]
            output = gr.Code(language="json", label="Scores")
            gr.Button("Score").click(score_rankings, fields, output)
        with gr.Tab("titles"):
            fields = [
                gr.Textbox(TITLE_EXAMPLE[0], lines=4, label="Generated titles, one per line"),
                gr.Textbox(TITLE_EXAMPLE[1], lines=4, label="True titles, one per line"),
                gr.Textbox(CATALOG_EXAMPLE, lines=6, label="Catalog, one title per line"),
                gr.Textbox(ENCODER, label="Encoder: a sentence-transformers or causal LM id"),
                gr.Textbox(TITLE_EXAMPLE[2], label="K"),
            ]
            output = gr.Code(language="json", label="Scores")
            gr.Button("Score").click(score_titles, fields, output)
    return page


if __name__ == "__main__":
    build().launch()
