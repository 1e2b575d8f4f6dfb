"""Keywords: an instruct model describes catalog titles and generated titles by a few comma-separated attributes.

Writes `<run_dir>/keywords/keywords.parquet`, one row per distinct clean title (of the catalog, and of the first texts
in the method's generations, including those for validation), and `keywords.json`. Rows that the same model and prompt
have written are kept, and an interrupted run resumes (shards.py). If an answer contains no JSON with keywords, the
title is used instead. The fusion of keywords (`rank/fuse`) builds a catalog index over them, row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, read_table, write_json, write_table
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATIONS_FILE, read_generations
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.data.prompts import KEYWORDS_PLACEHOLDERS, keywords_prompt_ids
from bigrec_hf.data.run_folder import run_folder, split_folders
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.identity import model_revision

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, KeywordsSettings, ModelSettings, RunSettings


KEYWORDS_FILE = "keywords.parquet"
KEYWORDS_FOLDER = "keywords"
KEYWORDS_INDEX = "keywords_index"
SUMMARY_FILE = "keywords.json"
N_SHOWN = 5  # answers without keywords in the summary
KEYWORDS_SCHEMA = pa.schema([(C.TITLE, pa.string()), (C.KEYWORDS, pa.string()), (C.PARSED, pa.bool_())])


def read_keywords(path: str | Path) -> dict[str, str]:
    """Return the keywords by clean title. Raises BigrecError if `path` is missing or not a keywords file."""
    path = Path(path)
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: write the keywords with `bigrec-hf keywords`")
    table = read_table(path)
    missing = [name for name in (C.TITLE, C.KEYWORDS) if name not in table.column_names]
    if missing:
        raise BigrecError(f"{path} lacks the column {missing[0]!r}: give a file written by `bigrec-hf keywords`")
    return dict(zip(table[C.TITLE].to_pylist(), table[C.KEYWORDS].to_pylist(), strict=True))


def look_up(titles: Sequence[str], keywords: dict[str, str], place: str) -> list[str]:
    """Return the keywords of each title, "" for an empty one. Raises BigrecError if a title has none."""
    keywords = {"": ""} | keywords
    cleaned = [clean_title(title) for title in titles]
    unknown = list(dict.fromkeys(title for title in cleaned if title not in keywords))
    if unknown:
        raise BigrecError(
            f"{len(unknown)} titles of {place} have no keywords, such as {unknown[0]!r}: "
            "run `bigrec-hf keywords` after `generate`"
        )
    return [clean_title(keywords[title]) or title for title in cleaned]


def keyword_catalog(catalog: Catalog, keywords: dict[str, str]) -> Catalog:
    """Return the catalog with keywords in place of titles, row by row, for an index of keywords."""
    return Catalog(list(catalog.item_ids), look_up(catalog.titles, keywords, "the catalog"))


def parse_keywords(answer: str) -> list[str] | None:
    """Return the keywords of the first JSON object in an answer that has any, else None.

    `keywords` in the object (the case of the key is ignored) is a comma-separated string or a list of strings. Text and
    code fences around the object are ignored, outer spaces and repetitions (in any case) dropped. Invalid Unicode does
    not count, nor do the placeholders of the question, which weak models repeat.
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
    distinct = {word.casefold(): word for word in reversed(words) if word}  # the first spelling is kept
    ordered = dict.fromkeys(word.casefold() for word in words if word)
    try:
        json.dumps([distinct[key] for key in ordered], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, written as \ud800
        return []
    return [distinct[key] for key in ordered]


def keywords_table(titles: Sequence[str], answers: Sequence[str]) -> pa.Table:
    """Return the table (KEYWORDS_SCHEMA) of clean titles and the answers to them."""
    parsed = [parse_keywords(answer) for answer in answers]
    texts = [", ".join(words) if words else title for title, words in zip(titles, parsed, strict=True)]
    return pa.table([list(titles), texts, [words is not None for words in parsed]], schema=KEYWORDS_SCHEMA)


def wanted_titles(catalog: Catalog, generations: Sequence[Path]) -> list[str]:
    """Return distinct clean titles: those of the catalog, then the first texts of the existing `generations` files."""
    titles = dict.fromkeys(clean_title(title) for title in catalog.titles)
    for path in generations:
        if path.is_file():
            titles |= dict.fromkeys(clean_title(text) for text in read_generations(path, catalog).texts)
    return [title for title in titles if title]


def _noun(dataset: Sequence[str]) -> str:
    facts = load_facts(dataset[0]) if dataset else {"noun": "items"}
    return facts.get("noun_singular") or facts["noun"].removesuffix("s")


def _kept(folder: Path, facts: dict[str, Any]) -> pa.Table:
    """Return the rows in `folder` (KEYWORDS_SCHEMA) that the same model and prompt have written."""
    old, file = read_record(folder / SUMMARY_FILE), folder / KEYWORDS_FILE
    if file.is_file() and all(old.get(key) == value for key, value in facts.items()):
        return read_table(file, schema=KEYWORDS_SCHEMA)
    return KEYWORDS_SCHEMA.empty_table()


def main(run: RunSettings, data: DataSettings, model: ModelSettings, keywords: KeywordsSettings) -> None:
    """Write keywords for all titles that have none yet; several processes share the batches."""
    from bigrec_hf.common.processes import process_state
    from bigrec_hf.common.shards import ShardFolder, processes, write_texts
    from bigrec_hf.generate.batches import decode_batches, plan_batches
    from bigrec_hf.generate.decoder import Decoder, common_prefix_length
    from bigrec_hf.generate.job import load_network
    from bigrec_hf.generate.strategy import Decoding
    from bigrec_hf.models.loading import load_tokenizer

    folder, name = run_folder(run) / KEYWORDS_FOLDER, keywords.keywords_model or model.base_model
    if not name:
        raise BigrecError("no model given: name an instruct model with --keywords_model")
    state = process_state()
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    tokenizer = load_tokenizer(name, padding_side="left")
    noun = keywords.keywords_noun or _noun(data.dataset)
    facts = keyword_facts(name, model, keywords, keywords_prompt_ids("", noun, tokenizer), noun)
    kept = _kept(folder, facts)
    done = set(kept[C.TITLE].to_pylist())
    files = [place / run.method / GENERATIONS_FILE for place in reversed(split_folders(run).values())]
    titles = [title for title in wanted_titles(catalog, files) if title not in done]
    prompts = [keywords_prompt_ids(title, noun, tokenizer) for title in titles]
    batches = plan_batches(
        [len(ids) for ids in prompts],
        batch_size=keywords.keywords_batch_size,
        batch_tokens=keywords.keywords_batch_tokens,
        extra_tokens=keywords.keywords_tokens,
        copies=1,
    )
    shards = ShardFolder(folder / "shards", fingerprint(facts, titles, batches), len(batches), **processes(state))
    numbers, quiet = shards.own(), not state.is_main_process
    state.print(f"keywords: {len(done)} titles are done, {len(titles)} remain, in {len(shards.missing())} batches")
    state.wait_for_everyone()  # all processes have seen the same shards before the first new one appears
    with shards.shared_failure():
        if numbers:
            decoder = Decoder(
                load_network(model, name, None),
                tokenizer,
                Decoding("greedy", max_new_tokens=keywords.keywords_tokens),
                shared_prefix=prompts[0][: common_prefix_length(prompts)],
                single_line=False,
            )
            write = partial(write_texts, shards)
            decode_batches(decoder, prompts, titles, batches, numbers, write, label="keywords", quiet=quiet)
        if not state.is_main_process:
            return shards.wait_joined()
        shards.wait_complete()
        answers = [texts[0] for texts in shards.read(len(titles))[0]] if titles else []
        write_keywords(folder, kept, titles, answers, facts)
        shards.remove()


def keyword_facts(
    name: str, model: ModelSettings, keywords: KeywordsSettings, prompt_ids: Sequence[int], noun: str
) -> dict[str, Any]:
    """Return what the answers depend on besides the titles; `prompt_ids`: the prompt without a title."""
    return {
        "keywords_model": name,
        "model_fingerprint": model_revision(name),
        **{key: getattr(model, key) for key in ("dtype", "quantization", "attn_implementation")},
        "max_new_tokens": keywords.keywords_tokens,
        "noun": noun,
        "prompt_sha256": hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest(),
    }


def write_keywords(
    folder: Path, kept: pa.Table, titles: Sequence[str], answers: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write keywords.parquet, the rows of `kept` first, and keywords.json; print a summary."""
    new = keywords_table(titles, answers)
    table = pa.concat_tables([kept, new])
    failed = [answer for answer, parsed in zip(answers, new[C.PARSED].to_pylist(), strict=True) if not parsed]
    n_fallback = len(table) - sum(table[C.PARSED].to_pylist())
    write_table(table, folder / KEYWORDS_FILE)
    counts = {"n_titles": len(table), "n_asked": len(titles), "n_fallback": n_fallback}
    write_json(folder / SUMMARY_FILE, facts | counts | {"unparsed_answers": failed[:N_SHOWN]})
    print(f"keywords: {len(table)} titles, {n_fallback} of which keep their title because the answer had no keywords")
