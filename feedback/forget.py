"""Taking people out of what was collected of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from market.dataset import Dataset, read_part, write_like


def forget(
    dataset: Dataset, users: Collection[str], path: Path, *, overwrite: bool = False
) -> tuple[Dataset, set[str]]:
    """Write a data set without some users and all that is known of them as the data set `path`.

    Files of impressions in which there are none of theirs are linked, so what is left of a person is gone
    when the data set before is deleted.

    Returns:
        The new data set, and those of the users whom the old one had.

    Raises:
        ContractError: nothing is left.
        FileExistsError, FolderInUse: as `market.dataset.write_dataset`.
    """
    people = dataset.users()
    theirs = people["user_id"].isin(users)

    def parts() -> Iterator[pd.DataFrame | Path]:
        for file in dataset.impression_files:
            gone = read_part(file, ["user_id"])["user_id"].isin(users).to_numpy()
            yield read_part(file)[~gone] if gone.any() else file

    made = write_like(
        dataset,
        path,
        users=people[~theirs].reset_index(drop=True),
        impressions=parts(),
        moments=dataset.moments(),
        overwrite=overwrite,
    )
    return made, set(people.loc[theirs, "user_id"])
