"""Every setting a recipe or a command line can hold: one dataclass per section, with help, unit and default.

Nothing heavy is imported here, so that `--help` answers at once. Field names are unique across sections: a recipe
groups them by section, the command line names them directly (`--num_beams 4`). Stages unpack these objects in `main`;
functions take plain values, or a whole section where they are its only reader.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from bigrec_hf.settings.grpo import GrpoSettings as GrpoSettings
from bigrec_hf.settings.init import InitSettings
from bigrec_hf.settings.item_models import BaselinesSettings, LinearSettings, PoolSettings, SasrecSettings
from bigrec_hf.settings.prepare import DataSettings, PrepareSettings
from bigrec_hf.settings.rank import (
    DebiasSettings,
    EvaluateSettings,
    FuseSettings,
    GroundSettings,
    KeywordsSettings,
    RerankSettings,
    ScoreSettings,
)
from bigrec_hf.settings.rank import (
    RankOptions as RankOptions,
)
from bigrec_hf.settings.ray import RaySettings
from bigrec_hf.settings.recommend import RecommendSettings
from bigrec_hf.settings.share import DemoSettings, DownloadSettings, PublishSettings, ReportSettings
from bigrec_hf.settings.train import (
    GenerateSettings,
    ModelSettings,
    PipelineSettings,
    PromptSettings,
    RunSettings,
    SftSettings,
)


@dataclass(frozen=True)
class RunSections:
    """The sections that `run` reads, in the order in which it writes them to `<run_dir>/recipe.yaml`."""

    run: RunSettings = RunSettings()
    pipeline: PipelineSettings = PipelineSettings()
    prepare: PrepareSettings = PrepareSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    prompt: PromptSettings = PromptSettings()
    sft: SftSettings = SftSettings()
    grpo: GrpoSettings = GrpoSettings()
    generate: GenerateSettings = GenerateSettings()
    ground: GroundSettings = GroundSettings()
    score: ScoreSettings = ScoreSettings()
    linear: LinearSettings = LinearSettings()
    sasrec: SasrecSettings = SasrecSettings()
    fuse: FuseSettings = FuseSettings()
    rerank: RerankSettings = RerankSettings()
    pool: PoolSettings = PoolSettings()
    debias: DebiasSettings = DebiasSettings()


RUN_SECTIONS = tuple(section.name for section in fields(RunSections))
SECTIONS: dict[str, type] = {section.name: type(section.default) for section in fields(RunSections)} | {
    "baselines": BaselinesSettings,
    "keywords": KeywordsSettings,
    "evaluate": EvaluateSettings,
    "report": ReportSettings,
    "publish": PublishSettings,
    "recommend": RecommendSettings,
    "ray": RaySettings,
    "download": DownloadSettings,
    "demo": DemoSettings,
    "init": InitSettings,
}
