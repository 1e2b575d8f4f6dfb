"""Keywords: an instruct LM describes catalog titles and predicted titles by a few comma-separated attributes.

Writes `<run_dir>/keywords/keywords.parquet`, one row a distinct clean title (of the catalog, and of the first texts in
the method's generations, validation included), and `keywords.json`. What the file already holds by the same model and
prompt is kept; an interrupted run goes on where it stopped (shards.py). An answer that is no JSON with keywords falls
back to the title. Fusing by keywords (fuse.py) builds an ordinary catalog index over them, row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, read_table, write_json, write_table
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog
from bigrec_hf.data.examples import load_facts
from bigrec_hf.data.generations import GENERATIONS_FILE, read_generations
from bigrec_hf.data.prompts import KEYWORDS_PLACEHOLDERS, keywords_prompt_ids
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.identity import model_revision

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, KeywordsSettings, ModelSettings, RunSettings


KEYWORDS_FILE = "keywords.parquet"
KEYWORDS_FOLDER = "keywords"
KEYWORDS_INDEX = "keywords_index"
SUMMARY_FILE = "keywords.json"
N_SHOWN = 5  # answers without keywords that the summary shows
KEYWORDS_SCHEMA = pa.schema([(C.TITLE, pa.string()), (C.KEYWORDS, pa.string()), (C.PARSED, pa.bool_())])


def read_keywords(path: str | Path) -> dict[str, str]:
    """Clean title -> keywords of a keywords.parquet. Raises BigrecError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: write the keywords with `bigrec-hf keywords`")
    table = read_table(path)
    missing = [name for name in (C.TITLE, C.KEYWORDS) if name not in table.column_names]
    if missing:
        raise BigrecError(f"{path} lacks the column {missing[0]!r}: it is no file of `bigrec-hf keywords`")
    return dict(zip(table[C.TITLE].to_pylist(), table[C.KEYWORDS].to_pylist(), strict=True))


def look_up(titles: Sequence[str], keywords: dict[str, str], place: str) -> list[str]:
    """The keywords of each title ("" of an empty one). Raises BigrecError naming the first title without any."""
    keywords = {"": ""} | keywords
    cleaned = [clean_title(title) for title in titles]
    unknown = list(dict.fromkeys(title for title in cleaned if title not in keywords))
    if unknown:
        raise BigrecError(
            f"{len(unknown)} titles of {place} have no keywords, the first is {unknown[0]!r}: "
            "run `bigrec-hf keywords` after `generate`"
        )
    return [clean_title(keywords[title]) or title for title in cleaned]


def keyword_catalog(catalog: Catalog, keywords: dict[str, str]) -> Catalog:
    """The catalog with keywords in place of titles, row by row: what a keyword index is built over."""
    return Catalog(list(catalog.item_ids), look_up(catalog.titles, keywords, "the catalog"))


def parse_keywords(answer: str) -> list[str] | None:
    """The keywords of the first JSON object in an answer that has some, else None.

    The object's `keywords` (in any case) is a comma-separated string or a list of strings; text and code fences around
    it are ignored, outer spaces and repetitions (in any case) dropped. Text that is no valid Unicode does not count,
    nor does an echo of the question's own placeholders, which weak models give.
    """
    decoder = json.JSONDecoder()
    start = answer.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(answer, start)
        except (json.JSONDecodeError, RecursionError):
            value = None
        found = _keyword_list(value) if isinstance(value, dict) else []
        if found and tuple(found) != KEYWORDS_PLACEHOLDERS:
            return found
        start = answer.find("{", start + 1)
    return None


def _keyword_list(value: dict[str, Any]) -> list[str]:
    held = next((v for key, v in value.items() if key.strip().lower() == "keywords"), None)
    parts = held if isinstance(held, list) else [held]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        return []
    words = [" ".join(clean_title(word).split()) for text in texts for word in text.split(",")]
    distinct = {word.casefold(): word for word in reversed(words) if word}  # the first spelling wins
    ordered = dict.fromkeys(word.casefold() for word in words if word)
    try:
        json.dumps([distinct[key] for key in ordered], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, written as \ud800
        return []
    return [distinct[key] for key in ordered]


def keywords_table(titles: Sequence[str], answers: Sequence[str]) -> pa.Table:
    """KEYWORDS_SCHEMA of clean titles and the LM's answers to them."""
    parsed = [parse_keywords(answer) for answer in answers]
    texts = [", ".join(words) if words else title for title, words in zip(titles, parsed, strict=True)]
    return pa.table([list(titles), texts, [words is not None for words in parsed]], schema=KEYWORDS_SCHEMA)


def wanted_titles(catalog: Catalog, generations: Sequence[Path]) -> list[str]:
    """Distinct clean titles: the catalog's, then the first texts of these files (those that exist)."""
    titles = dict.fromkeys(clean_title(title) for title in catalog.titles)
    for path in generations:
        if path.is_file():
            titles |= dict.fromkeys(clean_title(text) for text in read_generations(path, catalog).texts)
    return [title for title in titles if title]


def _noun(dataset: Sequence[str]) -> str:
    facts = load_facts(dataset[0]) if dataset else {"noun": "items"}
    return facts.get("noun_singular") or facts["noun"].removesuffix("s")


def _kept(folder: Path, facts: dict[str, Any]) -> pa.Table:
    """What `folder` holds by the same model and prompt (KEYWORDS_SCHEMA), or no row."""
    old, file = read_record(folder / SUMMARY_FILE), folder / KEYWORDS_FILE
    if file.is_file() and all(old.get(key) == value for key, value in facts.items()):
        return read_table(file, schema=KEYWORDS_SCHEMA)
    return KEYWORDS_SCHEMA.empty_table()


def main(run: RunSettings, data: DataSettings, model: ModelSettings, keywords: KeywordsSettings) -> None:
    """Ask for the keywords of all titles that have none yet; of several processes, each takes a part of the batches."""
    from bigrec_hf.common.processes import process_state
    from bigrec_hf.common.shards import ShardFolder
    from bigrec_hf.generate.batches import decode_batches, plan_batches
    from bigrec_hf.generate.decoder import Decoder, common_prefix_length
    from bigrec_hf.generate.job import load_network
    from bigrec_hf.generate.strategy import Decoding
    from bigrec_hf.models.loading import load_tokenizer

    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    name = keywords.keywords_model or model.base_model
    if not name:
        raise BigrecError("no model given: name an instruct LM with --keywords_model")
    folder = Path(run.run_dir) / KEYWORDS_FOLDER
    state = process_state()
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    tokenizer = load_tokenizer(name, padding_side="left")
    noun = keywords.keywords_noun or _noun(data.dataset)
    decoding = Decoding("greedy", max_new_tokens=keywords.keywords_tokens)
    facts: dict[str, Any] = {
        "keywords_model": name,
        "model_fingerprint": model_revision(name),
        **{key: getattr(model, key) for key in ("dtype", "quantization", "attn_implementation")},
        "max_new_tokens": decoding.max_new_tokens,
        "noun": noun,
        "prompt_sha256": hashlib.sha256(json.dumps(keywords_prompt_ids("", noun, tokenizer)).encode()).hexdigest(),
    }
    kept = _kept(folder, facts)
    done = set(kept[C.TITLE].to_pylist())
    parts = (Path(run.run_dir), Path(run.run_dir) / VALIDATION_DIR)
    wanted = wanted_titles(catalog, [part / run.method / GENERATIONS_FILE for part in parts])
    titles = [title for title in wanted if title not in done]
    prompts = [keywords_prompt_ids(title, noun, tokenizer) for title in titles]
    batches = plan_batches(
        [len(ids) for ids in prompts],
        batch_size=keywords.keywords_batch_size,
        batch_tokens=keywords.keywords_batch_tokens,
        extra_tokens=decoding.max_new_tokens,
        copies=1,
    )
    shards = ShardFolder(
        folder / "shards",
        fingerprint(facts, titles, batches),
        len(batches),
        rank=state.process_index,
        n_processes=state.num_processes,
    )
    numbers = shards.own()
    state.print(f"keywords: {len(done)} titles are done, {len(titles)} to ask, {len(shards.missing())} batches left")
    state.wait_for_everyone()  # everyone has seen the same shards before the first new one appears
    with shards.shared_failure():
        if numbers:
            network = load_network(model, name, None)
            prefix = prompts[0][: common_prefix_length(prompts)]
            decoder = Decoder(network, tokenizer, decoding, shared_prefix=prefix, single_line=False)
            decode_batches(
                decoder,
                prompts,
                titles,
                batches,
                numbers,
                shards.write,
                label="keywords",
                quiet=not state.is_main_process,
            )
        if state.is_main_process:
            shards.wait_complete()
            answers = [texts[0] for texts in shards.read(len(titles))[0]] if titles else []
            new = keywords_table(titles, answers)
            table = pa.concat_tables([kept, new])
            failed = [answer for answer, parsed in zip(answers, new[C.PARSED].to_pylist(), strict=True) if not parsed]
            n_parsed = sum(table[C.PARSED].to_pylist())
            write_table(table, folder / KEYWORDS_FILE)
            counts = {"n_titles": len(table), "n_asked": len(titles), "n_fallback": len(table) - n_parsed}
            write_json(folder / SUMMARY_FILE, facts | counts | {"unparsed_answers": failed[:N_SHOWN]})
            shards.remove()
            print(f"keywords: {len(table)} titles, {counts['n_fallback']} of them without JSON, by their title instead")
        else:
            shards.wait_joined()
