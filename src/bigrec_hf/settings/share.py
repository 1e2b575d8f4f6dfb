"""Settings: what is shown and shared: reports, the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class ReportSettings:
    """One table over runs, baselines and published rows."""

    runs: list[str] = setting([], "run folders", positional=True)
    report_path: str | None = setting(None, "Markdown file to write (default: print only)")
    published: str | None = setting(None, "published rows to show beside: movie or game", choices=("movie", "game"))
    compare_to: str | None = setting(
        None,
        "row that the others are tested against: METHOD or RUN/METHOD, or none (default: finetuned, of the first run)",
    )
    significance_level: float = setting(0.05, "mark a difference where its corrected p is below this", above=0, below=1)
    permutations: int = setting(10_000, "random sign flips of the permutation test, at least", least=1)
    differences: bool = setting(False, "also show every difference with its interval and corrected p")
    breakdown: bool = setting(
        False, "also by history length and target popularity, with coverage and diversity (written to breakdown.json)"
    )
    plots: bool = setting(
        False, "draw metrics.png, and curves.png where a parameter was chosen, into each run (extra: bench)"
    )
    update_readme: str | None = setting(
        None, "Markdown file whose text between <!-- results:RUN --> and <!-- /results --> becomes the run's table"
    )
    readme_columns: list[str] = setting(["hr@1", "hr@10", "hr@50", "ndcg@10", "ndcg@50"], "metrics of the README table")


@dataclass(frozen=True)
class PublishSettings:
    """What goes to the Hub, where to, and how. Needs a token (`hf auth login` or HF_TOKEN); without one: a dry run."""

    publish_kind: str | None = setting(
        None,
        "dataset, adapter (with its index), index, metric (a Space), or run: all of them, cross-linked",
        positional=True,
        choices=("dataset", "adapter", "index", "metric", "run"),
    )
    repo_id: str | None = setting(None, "repository, user/name; created where it does not exist")
    published_run: str | None = setting(None, "run folder: adapter, index, run", flag="--run_dir")
    published_dataset: str | None = setting(None, "prepared set to publish (default: the run's own)", flag="--dataset")
    published_base: str | None = setting(
        None, "Hub id of the base model, for a run whose base is a local folder", flag="--base_model"
    )
    dataset_repo_id: str | None = setting(
        None, "run: publish the data set too, there; adapter, index: the data set's repository, to be named"
    )
    index_repo_id: str | None = setting(
        None, "run: the index's repository (default: <repo_id>-index); adapter: an index that is there already"
    )
    metric_repo_id: str | None = setting(
        None, "run: the metric's Space (default: <user>/ndcg_hr); adapter: the Space, to be named"
    )
    with_index: bool = setting(True, "adapter: put the catalog index into the adapter's repository")
    dry_run: bool = setting(False, "push nothing: write the folder that would be pushed, say what would happen")
    private: bool = setting(False, "create the repositories as private ones")
    branch: str | None = setting(None, "branch to commit to, created where missing (default: main)", flag="--revision")
    create_pr: bool = setting(False, "open a pull request instead of committing to the branch")
    message: str | None = setting(None, "commit message (default: what is published, by which version)")
    model_license: str | None = setting(
        None, "license of the adapter, e.g. apache-2.0 (default: none is stated)", flag="--license"
    )
    i_have_permission: bool = setting(
        False, "publish openly although the data's terms forbid redistribution: you have the permission to"
    )
    publish_dir: str | None = setting(None, "folder for what a dry run writes (default: published)")


@dataclass(frozen=True)
class DownloadSettings:
    """Fetch ahead of time what a recipe names on the Hub; afterwards HF_HUB_OFFLINE=1 works."""

    include: list[str] = setting([], "files of models to fetch, patterns like *.json (default: what loading reads)")
    exclude: list[str] = setting([], "files of models to leave out, patterns")
    local_dir: str | None = setting(None, "put repositories into folders there (default: the Hub client's cache)")
    metric: str | None = setting(None, "also a metric (a Space), for evaluate.load with HF_EVALUATE_OFFLINE=1")
