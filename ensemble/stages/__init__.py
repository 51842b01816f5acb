"""The stages of the cascade, one file each: functions of batched arrays bound to a release."""

from __future__ import annotations

from typing import Any

from ensemble.release import Release


def build(name: str, release: Release) -> Any:
    """The stage that a Triton step of this name runs; "cascade" is all of them and the graphs between.

    Raises:
        ValueError: no stage has that name.
    """
    from ensemble.stages.reordering import Reordering
    from ensemble.stages.retrieval import Retrieval
    from ensemble.stages.user_state import UserState

    if name == "cascade":
        from ensemble.cascade import Cascade

        return Cascade(release).answer
    stages = {stage.name: stage for stage in (UserState, Retrieval, Reordering)}
    if name not in stages:
        raise ValueError(f"no stage is named {name!r}; there are cascade, {', '.join(stages)}")
    return stages[name](release)
