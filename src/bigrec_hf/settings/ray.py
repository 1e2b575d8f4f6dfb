"""Settings of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class RaySettings:
    """Actors on a Ray cluster instead of this process (extra: ray); the rows are the same."""

    num_actors: int = setting(0, "actors, each of which loads the models; 0 = this process", least=0)
    resources: dict[str, Any] = setting({}, "what an actor needs, e.g. {GPU: 1}; one CPU unless set")
    ray_address: str | None = setting(None, "address of a running Ray cluster, or auto (default: one on this machine)")

    @property
    def device(self) -> str | None:
        """Where the actors compute, cuda or cpu; None without actors."""
        return None if not self.num_actors else "cuda" if self.resources.get("GPU") else "cpu"


NO_ACTORS = RaySettings()
