"""Settings of reports and of the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class ReportSettings:
    """One table of runs, baselines and published rows."""

    runs: list[str] = setting([], "run folders", positional=True)
    report_path: str | None = setting(
        None, "file to write (default: Markdown is only printed, HTML goes to report.html in the first run)"
    )
    report_format: str = setting(
        "markdown",
        "markdown: tables as text; html: one page with plots and examples, which needs no other file",
        flag="--format",
        choices=("markdown", "html"),
    )
    published: str | None = setting(None, "published rows to show as well: movie or game", choices=("movie", "game"))
    published_rows: str = setting(
        "best", "which of them: best (of each model and method by NDCG@10), all, or a model's, such as llama-7b"
    )
    compare_to: str | None = setting(
        None,
        "row to test the others against: METHOD or RUN/METHOD, or none (default: finetuned, of the first run)",
    )
    significance_level: float = setting(0.05, "mark a difference if its corrected p is below this", above=0, below=1)
    test_metrics: list[str] = setting(
        ["ndcg@10", "hr@10"],
        "metrics whose differences are tested and marked, ndcg@K or hr@K; fewer tests are corrected less",
    )
    permutations: int = setting(10_000, "minimum number of random sign flips in the permutation test", least=1)
    differences: bool = setting(False, "also show every difference with its interval and corrected p")
    breakdown: bool = setting(
        False,
        "also show results by history length and target popularity, with coverage and diversity (in breakdown.json)",
    )
    plots: bool = setting(
        False,
        "write metrics.png, the metrics against K, differences.png, those to the row of compare_to, learning.png, the "
        "loss against targets seen, and figures of reinforcement learning into each run",
    )
    update_readme: str | None = setting(
        None,
        "Markdown file; the text between <!-- results:RUN --> and <!-- /results --> becomes the table of the run",
    )
    readme_columns: list[str] = setting(["hr@1", "hr@10", "hr@50", "ndcg@10", "ndcg@50"], "metrics of that table")
    readme_rows: list[str] = setting(
        [], "methods of that table and of the plots, in this order; only these are tested there (default: all)"
    )


@dataclass(frozen=True)
class DemoSettings:
    """A page in the browser to try recommenders on."""

    demo_runs: list[str] = setting([], "run folders; several recommenders are shown side by side", flag="--run_dir")
    demo_adapters: list[str] = setting(
        [], "adapters: folders or Hub ids, `@revision` allowed", flag="--adapter", hub="model"
    )
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = reachable from other machines")
    port: int = setting(7860, "port to listen on", least=1, most=65535)


@dataclass(frozen=True)
class PublishSettings:
    """What to publish on the Hub, where and how. Without a token (`hf auth login` or HF_TOKEN) it is a dry run."""

    publish_kind: str | None = setting(
        None,
        "dataset, adapter (with its index), index, metric (a Space), run: all of these, cross-linked; or demo: a Space "
        "to try a published adapter on",
        positional=True,
        choices=("dataset", "adapter", "index", "metric", "run", "demo"),
    )
    repo_id: str | None = setting(None, "repository, user/name; created if it does not exist")
    published_run: str | None = setting(None, "run folder: adapter, index, run", flag="--run_dir")
    published_adapter: str | None = setting(
        None, "demo: the adapter that it shows, a Hub id, `@revision` allowed", flag="--adapter", hub="model"
    )
    published_dataset: str | None = setting(
        None, "prepared data set to publish (default: that of the run)", flag="--dataset"
    )
    published_base: str | None = setting(
        None, "Hub id of the base model, for a run whose base model is a local folder", flag="--base_model"
    )
    dataset_repo_id: str | None = setting(
        None,
        "run: publish the data set too, to this repository; adapter, index: the repository of the data set, to link to",
    )
    index_repo_id: str | None = setting(
        None, "run: repository of the index (default: <repo_id>-index); adapter: an index that is already published"
    )
    metric_repo_id: str | None = setting(
        None, "run: Space of the metric (default: <user>/ndcg_hr); adapter: the Space to link to"
    )
    with_index: bool = setting(True, "adapter: put the catalog index into the adapter's repository")
    dry_run: bool = setting(False, "push nothing: write the folder that would be pushed and say what would happen")
    private: bool = setting(False, "create private repositories")
    branch: str | None = setting(None, "branch to commit to, created if missing (default: main)", flag="--revision")
    create_pr: bool = setting(False, "open a pull request instead of committing to the branch")
    message: str | None = setting(None, "commit message (default: what is published and by which version)")
    model_license: str | None = setting(
        None, "license of the adapter, e.g. apache-2.0 (default: none is stated)", flag="--license"
    )
    i_have_permission: bool = setting(
        False, "publish openly although the terms of the data forbid redistribution, because you have permission"
    )
    publish_dir: str | None = setting(None, "folder that a dry run writes to (default: published)")


@dataclass(frozen=True)
class DownloadSettings:
    """Download what a recipe names on the Hub, so that it runs with HF_HUB_OFFLINE=1."""

    include_files: list[str] = setting(
        [], "files of models to download, patterns like *.json (default: those that loading reads)"
    )
    exclude_files: list[str] = setting([], "files of models to skip, patterns")
    local_dir: str | None = setting(None, "folder to put repositories into (default: the cache of the Hub client)")
    metric: str | None = setting(None, "also download a metric (a Space), for evaluate.load with HF_EVALUATE_OFFLINE=1")
