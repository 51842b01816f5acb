"""Public data sets, read from the files their publishers ship. Never imported by serving."""

from collections.abc import Callable
from pathlib import Path

from market.importers import gowalla, kuairand, taobao, tiktok, xmarket
from market.importers.reading import ImportProblem
from market.tables import Tables

__all__ = ["IMPORTERS", "ImportProblem", "read"]

IMPORTERS: dict[str, Callable[[Path], Tables]] = {
    "gowalla": gowalla.read,
    "kuairand": kuairand.read,
    "taobao": taobao.read,
    "tiktok": tiktok.read,
    "xmarket": xmarket.read,
}
"""The reader of each public data set: its folder → validated tables."""


def read(name: str, path: Path | str) -> Tables:
    """The public data set `name` from the folder `path`, validated; raises `ImportProblem`."""
    if name not in IMPORTERS:
        raise ImportProblem(f"no importer {name!r}; there are {', '.join(IMPORTERS)}.")
    path = Path(path)
    if not path.is_dir():
        raise ImportProblem(f"{path} is no folder; give the folder with the files of {name}.")
    return IMPORTERS[name](path)
