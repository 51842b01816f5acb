"""The stages of the cascade, one file each: functions of batched arrays bound to a release."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ensemble.release import Release
from ensemble.steering import Steering
from supply.rules import Rules


def build(
    name: str,
    release: Release,
    *,
    state: str | None = None,
    feedback: str | None = None,
    rules: str = "{}",
) -> Any:
    """What a Triton step of this name runs: a stage, or "cascade", all of them and the graphs between.

    Args:
        state: folder of the live state; None where there is none.
        feedback: folder of the feedback log; None where there is none.
        rules: `Rules` of markets, as JSON.

    Raises:
        ValueError: no stage has that name.
    """
    from ensemble.cascade import served
    from ensemble.stages.events import Events
    from ensemble.stages.feedback import Feedback

    # Triton's Python takes names of files for ASCII whatever the locale says; as bytes they are the same.
    kept, log = (
        None if folder is None else Path(os.fsdecode(folder.encode())) for folder in (state, feedback)
    )
    if name == Events.name:
        if kept is None:
            raise ValueError("events need a folder for the live state; give one")
        return Events(release, kept, log)
    if name == Feedback.name:
        if log is None:
            raise ValueError("feedback needs a folder for its log; give one")
        return Feedback(log)
    return served(name, release, Steering(Rules(**json.loads(rules)), kept))


def stage(name: str, release: Release, steering: Steering) -> Any:
    """The stage of a name; `ValueError` where none has it."""
    from ensemble.stages.reordering import Reordering
    from ensemble.stages.retrieval import Retrieval
    from ensemble.stages.user_state import UserState

    stages = {
        UserState.name: lambda: UserState(release),
        Retrieval.name: lambda: Retrieval(release, steering),
        Reordering.name: lambda: Reordering(release, steering),
    }
    if name not in stages:
        raise ValueError(f"no stage is named {name!r}; there are cascade, {', '.join(stages)}")
    return stages[name]()
