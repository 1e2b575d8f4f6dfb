"""BIGRec on the Hugging Face stack: an LM generates the next item's title, the title is grounded to the catalog."""

import logging
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.version import __version__

if TYPE_CHECKING:
    from bigrec_hf.hub.recommender import Recommender
    from bigrec_hf.prepare.frames import prepare_frame
    from bigrec_hf.recommend.serve import recommend_frame
    from bigrec_hf.score.frames import evaluate_frame

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns on import how it could be faster on a CPU

__all__ = ["Recommender", "__version__", "evaluate_frame", "prepare_frame", "recommend_frame"]


def __getattr__(name: str) -> Any:
    """Import the functions and classes on first use: they pull in torch or polars, which `--help` does not need."""
    if name == "Recommender":
        from bigrec_hf.hub.recommender import Recommender

        return Recommender
    if name == "recommend_frame":
        from bigrec_hf.recommend.serve import recommend_frame

        return recommend_frame
    if name == "evaluate_frame":
        from bigrec_hf.score.frames import evaluate_frame

        return evaluate_frame
    if name == "prepare_frame":
        from bigrec_hf.prepare.frames import prepare_frame

        return prepare_frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
