"""Every setting a recipe or a command line can hold: one dataclass a section, with help, unit and default.

Nothing heavy is imported here, so that `--help` answers at once. Field names are unique across sections: a recipe
groups them by section, the command line names them directly (`--num_beams 4`). Stages unpack these objects in `main`;
functions take plain values.
"""

from __future__ import annotations

from bigrec_hf.settings.prepare import DataSettings, PrepareSettings
from bigrec_hf.settings.rank import (
    DebiasSettings,
    EvaluateSettings,
    FuseSettings,
    GroundSettings,
    KeywordsSettings,
    RerankSettings,
    SasrecSettings,
    ScoreSettings,
)
from bigrec_hf.settings.share import DownloadSettings, PublishSettings, ReportSettings
from bigrec_hf.settings.train import (
    GenerateSettings,
    ModelSettings,
    PipelineSettings,
    PromptSettings,
    RunSettings,
    SftSettings,
)

__all__ = [
    "SECTIONS",
    "DataSettings",
    "DebiasSettings",
    "DownloadSettings",
    "EvaluateSettings",
    "FuseSettings",
    "GenerateSettings",
    "GroundSettings",
    "KeywordsSettings",
    "ModelSettings",
    "PipelineSettings",
    "PrepareSettings",
    "PromptSettings",
    "PublishSettings",
    "ReportSettings",
    "RerankSettings",
    "RunSettings",
    "SasrecSettings",
    "ScoreSettings",
    "SftSettings",
]

SECTIONS = {
    "run": RunSettings,
    "pipeline": PipelineSettings,
    "prepare": PrepareSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "prompt": PromptSettings,
    "sft": SftSettings,
    "generate": GenerateSettings,
    "ground": GroundSettings,
    "score": ScoreSettings,
    "rerank": RerankSettings,
    "debias": DebiasSettings,
    "keywords": KeywordsSettings,
    "fuse": FuseSettings,
    "evaluate": EvaluateSettings,
    "sasrec": SasrecSettings,
    "report": ReportSettings,
    "publish": PublishSettings,
    "download": DownloadSettings,
}
