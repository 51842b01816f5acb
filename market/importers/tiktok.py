"""TikTok short videos with content vectors, in the split of MMSSL and DiffMM (Jiang et al., MM 2024).

    train.txt, valid.txt, test.txt    user item, 0-based, separated by a space
    audio_feat.npy, image_feat.npy    [items, 128], the row is the item

The publisher says of an interaction only that it happened; it is imported as a click.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from market.importers.reading import (
    ImportProblem,
    contents_of_one_market,
    find,
    given_split,
    read_pairs,
    users_of_one_market,
)
from market.tables import Tables, validate


def read(folder: Path) -> Tables:
    """The data set in `folder`, every video of the feature files included; raises `ImportProblem`."""
    splits = {split: read_pairs(find(folder, f"{split}.txt")) for split in ("train", "valid", "test")}
    audio, image = (_vectors(find(folder, f"{name}_feat.npy")) for name in ("audio", "image"))
    if len(audio) != len(image):
        raise ImportProblem(
            f"{folder}: audio_feat.npy has {len(audio):,} rows, image_feat.npy {len(image):,}. "
            "The files are of different versions: download both again."
        )
    for split, pairs in splits.items():
        beyond = pairs[:, 1] >= len(audio)
        if beyond.any():
            raise ImportProblem(
                f"{folder / f'{split}.txt'}: line {int(beyond.argmax()) + 1}, column item: "
                f"{pairs[beyond][0, 1]} is beyond the {len(audio):,} rows of audio_feat.npy. "
                "Use files of one version."
            )
    contents = contents_of_one_market(np.arange(len(audio)), "video")
    return validate(
        Tables(
            name="tiktok",
            feedback="positives",
            split="given",
            users=users_of_one_market(np.concatenate(list(splits.values()))[:, 0]),
            contents=contents.assign(v_audio=list(audio), v_image=list(image)),
            impressions=given_split(splits, click=1),
        )
    )


def _vectors(path: Path) -> NDArray[np.float32]:
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ImportProblem(f"{path} is not a NumPy array ({error}); download it again.") from None
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise ImportProblem(
            f"{path} holds {vectors.dtype} {vectors.shape} instead of floats [items, length]. "
            "Download it again."
        )
    return vectors.astype(np.float32)
