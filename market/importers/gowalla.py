"""Gowalla check-ins in the split of LightGCN (He et al., SIGIR 2020), as its code stores them.

    s_adj_mat.npz    the training graph over users, then items: a square sparse matrix, users and items apart
    test.txt         user item item …, 0-based, separated by spaces

A place is imported as a product, a thing to go for, and a check-in as a click: neither name matters to the
checks of retrieval and of the metrics that this set is for. It has no validation rows.
"""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import load_npz

from market.importers.reading import (
    ImportProblem,
    contents_of_one_market,
    find,
    given_split,
    users_of_one_market,
)
from market.tables import Tables, validate


def read(folder: Path) -> Tables:
    """The data set in `folder`; raises `ImportProblem`."""
    train, users, items = _graph(find(folder, "s_adj_mat.npz"))
    test = _test(find(folder, "test.txt"), users, items)
    return validate(
        Tables(
            name="gowalla",
            feedback="positives",
            split="given",
            users=users_of_one_market(np.arange(users)),
            contents=contents_of_one_market(np.arange(items), "product"),
            impressions=given_split({"train": train, "test": test}, click=1),
        )
    )


def _graph(path: Path) -> tuple[NDArray[np.int64], int, int]:
    """Training interactions [N, 2] and the numbers of users and items."""
    try:
        graph = load_npz(path).tocoo()
    except (ValueError, OSError, KeyError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise ImportProblem(f"{path} is not a sparse matrix ({error}); download it again.") from None
    above = graph.row < graph.col
    user, node = graph.row[above].astype(np.int64), graph.col[above].astype(np.int64)
    users = int(user.max(initial=-1)) + 1
    if graph.shape[0] != graph.shape[1] or not users or node.min() < users:
        raise ImportProblem(
            f"{path}: a matrix {graph.shape} that does not link users to items alone, users first. "
            "Use the file as published."
        )
    # Users without training rows would stand between the two; LightGCN's split has none.
    order = np.lexsort((node, user))
    return np.stack([user, node - users], axis=1)[order], users, graph.shape[0] - users


def _test(path: Path, users: int, items: int) -> NDArray[np.int64]:
    pairs: list[tuple[int, int]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                user, *targets = (int(field) for field in line.split())
                if not (0 <= user < users and all(0 <= item < items for item in targets)):
                    raise ValueError
            except ValueError:
                raise ImportProblem(
                    f"{path}: line {number} is not a user below {users:,} and items below {items:,}, "
                    f"separated by spaces: {line.strip()[:60]!r}. Use the files as published."
                ) from None
            pairs += [(user, item) for item in targets]
    if not pairs:
        raise ImportProblem(f"{path} has no interactions; download it again.")
    return np.array(pairs, np.int64)
