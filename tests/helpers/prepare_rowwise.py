"""The protocols of docs/method, one row at a time: written for the tests, sharing no code with the package.

Slow, plain Python, pandas for the samples as the reference has it. Files are read from text that the tests made.
"""

from __future__ import annotations

import ast
import json
import random
from datetime import UTC, datetime

import pandas as pd

WORDS = {"movie": ("movies", "movie", "watched"), "game": ("video games", "video game", "played")}


def movielens(ratings_dat: str, movies_dat: str):
    """(catalog [(id, title)], interactions [(user, id, rating, time)]) in file order."""
    catalog = []
    for line in movies_dat.split("\n"):
        if line:
            parts = line.split("::")
            catalog.append((parts[0], "::".join(parts[1:-1])))
    interactions = []
    for line in ratings_dat.split("\n"):
        if line:
            user, item, rating, time = line.split("::")
            interactions.append((user, item, float(rating), int(time)))
    return catalog, interactions


def amazon(reviews: str, metadata: str, d3: bool = False):
    """(titles by id, kept interactions, drops): the last counting record wins, reviews without title or fields go."""
    titles = {}
    for line in metadata.split("\n"):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = ast.literal_eval(line)
        title = record.get("title")
        if title is None:
            continue
        if d3:
            if "<span id" in title:
                continue
            title = title.replace("&quot;", '"').replace("&amp;", "&").strip(" ").strip('"')
            if len(title.split(" ")) > 20:
                continue
        if len(title) > 1:
            titles[record["asin"]] = title
    kept, untitled, incomplete = [], 0, 0
    for line in reviews.split("\n"):
        if not line:
            continue
        review = json.loads(line)
        if review["asin"] not in titles:
            untitled += 1
        elif "overall" not in review or "unixReviewTime" not in review:
            incomplete += 1
        else:
            kept.append((review["reviewerID"], review["asin"], float(review["overall"]), review["unixReviewTime"]))
    return titles, kept, (untitled, incomplete)


def order_of_first(values):
    seen = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen


def d3_filter(interactions, min_items: int, k: int = 5, start_year: int = 2017):
    """Window, then k-core; the window's start goes back a year while too few items remain."""
    start = datetime(start_year, 10, 1, tzinfo=UTC).timestamp()
    end = datetime(2018, 11, 1, tzinfo=UTC).timestamp()
    kept = [entry for entry in interactions if start <= entry[3] <= end]
    while True:
        n_user, n_item = {}, {}
        for user, item, _, _ in kept:
            n_user[user] = n_user.get(user, 0) + 1
            n_item[item] = n_item.get(item, 0) + 1
        smaller = [entry for entry in kept if n_user[entry[0]] >= k and n_item[entry[1]] >= k]
        if len(smaller) == len(kept):
            break
        kept = smaller
    if len({entry[1] for entry in kept}) < min_items and start_year > 1996:
        return d3_filter(interactions, min_items, k, start_year - 1)
    return kept


def d3_catalog(titles, kept):
    ids = order_of_first(item for _, item, _, _ in kept)
    random.seed(42)
    random.shuffle(ids)
    return [(item, titles[item]) for item in ids]


def examples(catalog, interactions, preset: str, window: int = 10):
    """{split: [(user, position, history rows, history ratings, target row, rating, time)]}"""
    row_of = {item: row for row, (item, _) in enumerate(catalog)}
    sequences = {}
    for user, item, rating, time in interactions:
        sequences.setdefault(user, []).append((time, row_of[item], rating))
    splits = {"train": [], "validation": [], "test": []}
    everything = []
    for user, entries in sequences.items():
        entries.sort(key=lambda entry: entry[0])
        n = len(entries)
        first = {"bigrec-movie": window, "bigrec-game": min(window, n - 1), "d3": 1, "leave-one-out": 1}[preset]
        for i in range(first, n):
            history = entries[max(0, i - window) : i]
            time, row, rating = entries[i]
            example = (user, i, [e[1] for e in history], [e[2] for e in history], row, rating, time)
            if preset != "leave-one-out":
                everything.append(example)
            elif n >= 3:
                splits["test" if i == n - 1 else "validation" if i == n - 2 else "train"].append(example)
    if preset != "leave-one-out":
        everything.sort(key=lambda example: example[6])
        n = len(everything)
        splits["train"] = everything[: int(n * 0.8)]
        splits["validation"] = everything[int(n * 0.8) : int(n * 0.9)]
        splits["test"] = everything[int(n * 0.9) :]
    return splits


def reference_files(catalog, splits, domain: str, nan_quirk: bool):
    """{file name: records} of the reference's five JSON files."""
    noun, singular, verb = WORDS[domain]
    instruction = (
        f"Given a list of {noun} the user has {verb} before, please recommend a new {singular} that the user likes "
        "to the user."
    )
    files = {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        records = []
        for _, _, history, _, target, _, _ in splits[split]:
            text = f"The user has {verb} the following {noun} before:"
            for number, row in enumerate(history):
                text += (", " if number else "") + '"' + catalog[row][1] + '"'
            title = catalog[target][1]
            if nan_quirk and title == "None":
                title = "nan"
            records.append({"instruction": instruction, "input": text + "\n ", "output": '"' + title + '"'})
        files[f"{name}.json"] = records
        if split != "train":
            frame = pd.DataFrame({"record": records}, dtype=object)
            drawn = frame.sample(n=min(5000, len(records)), random_state=42) if records else frame
            files[f"{name}_5000.json"] = drawn["record"].tolist()
    return files
