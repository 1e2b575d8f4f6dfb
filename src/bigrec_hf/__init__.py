"""BIGRec on the Hugging Face stack: an LM generates the next item's title, the title is grounded to the catalog."""

from typing import TYPE_CHECKING, Any

from bigrec_hf.common.version import __version__

if TYPE_CHECKING:
    from bigrec_hf.hub.recommender import Recommender

__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Recommender` on first use: it pulls in torch, which `--help` does not need."""
    if name == "Recommender":
        from bigrec_hf.hub.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
