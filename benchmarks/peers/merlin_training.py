"""Merlin Models' side of the training benchmark, as it comes.

Its Loader over a Dataset, ragged histories, Adam over whole tables, and its metrics in every step.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from answering import serve
from arrays import Trained

os.environ["TF_NUM_INTRAOP_THREADS"] = "0"  # TensorFlow's own choice, not ours
sys.path.insert(0, str(Path(__file__).parents[2]))
import models.names  # noqa: F401  (lets it import on this TensorFlow)

import merlin.models.tf as mm  # isort: skip
import tensorflow as tf  # isort: skip
from merlin.io import Dataset  # isort: skip
from merlin.models.tf.outputs.base import DotProduct  # isort: skip
from merlin.models.tf.transforms.bias import PopularityLogitsCorrection  # isort: skip
from merlin.schema import ColumnSchema, Schema, Tags  # isort: skip


def schema_of(about, side):
    """A side's columns with ragged lists, as NVTabular would have written it."""
    columns = [
        ColumnSchema(
            column["name"],
            dtype=np.int64,
            tags=[Tags.CATEGORICAL, *([Tags.ITEM_ID] if column["name"] == about.get("item_id") else [])],
            properties={"domain": {"min": 0, "max": column["rows"] - 1, "name": column["domain"]}},
            dims=(None, (1, column["width"])) if column["width"] > 1 else None,
        )
        for column in about[side]["columns"]
    ]
    numbers = [ColumnSchema(n, dtype=np.float32, tags=[Tags.CONTINUOUS]) for n in about[side]["numbers"]]
    return Schema([*columns, *numbers])


class Merlin(Trained):
    """One model and its data set."""

    def build(self):
        about = self.about
        tf.keras.utils.set_random_seed(about["seed"])
        self.query, self.content = schema_of(about, "query"), schema_of(about, "content")
        self.schema = self.query + self.content
        if about["model"] == "dlrm":
            self.pairs = [f"pair_{place}" for place in range(self.arrays["pair_numbers"].shape[1])]
            self.schema += Schema(
                [ColumnSchema(name, dtype=np.float32, tags=[Tags.CONTINUOUS]) for name in self.pairs]
            )
            targets = [
                ColumnSchema(task, dtype=np.float32, tags=[Tags.TARGET, Tags.BINARY])
                for task in about["tasks"]
            ]
            self.model = self.dlrm()
            self.with_targets = self.schema + Schema(targets)
        else:
            self.model = self.two_tower()
            self.with_targets = self.schema
        self.model.compile(optimizer="adam")
        self.table = Dataset(self.frame(self.arrays), schema=self.with_targets)

    def dlrm(self):
        about = self.about
        return mm.DLRMModel(
            self.schema,
            embeddings=mm.Embeddings(self.schema.select_by_tag(Tags.CATEGORICAL), dim=about["embedding_dim"]),
            bottom_block=mm.MLPBlock([*about["bottom"], about["embedding_dim"]]),
            top_block=mm.MLPBlock(about["top"]),
            prediction_tasks=mm.ParallelBlock(*[mm.BinaryOutput(task) for task in about["tasks"]]),
        )

    def two_tower(self):
        about = self.about

        def tower(schema):
            inputs = mm.InputBlockV2(
                schema,
                categorical=mm.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=about["embedding_dim"]),
            )
            layers = mm.MLPBlock([*about["hidden"], about["dim"]], no_activation_last_layer=True)
            return mm.Encoder(inputs, layers, post=mm.L2Norm())

        ids = self.content.select_by_tag(Tags.ITEM_ID)
        encoded = self.columns("content", self.arrays["pair_content"])[ids.first.name]
        count = np.bincount(encoded, minlength=int(ids.first.int_domain.max) + 1)
        output = mm.ContrastiveOutput(
            to_call=DotProduct(),
            negative_samplers="in-batch",
            schema=ids,
            logits_temperature=about["temperature"],
            store_negative_ids=True,
            post=PopularityLogitsCorrection(
                tf.constant(np.maximum(count, 1), tf.float32),
                schema=self.content,
                reg_factor=about["temperature"],
            ),
        )
        return mm.TwoTowerModelV2(tower(self.query), tower(self.content), outputs=output)

    def columns(self, side, rows):
        """Columns of a side's rows by name, lists as rows without padding."""
        ids, found, start = self.arrays[f"{side}_ids"][rows].astype(np.int64), {}, 0
        for column in self.about[side]["columns"]:
            values = ids[:, start : start + column["width"]]
            start += column["width"]
            if column["width"] == 1:
                found[column["name"]] = values[:, 0]
            else:  # ragged lists may not be empty: an empty history is the null category
                found[column["name"]] = [
                    row[row > 0] if (row > 0).any() else np.ones(1, int) for row in values
                ]
        numbers = self.arrays[f"{side}_numbers"][rows]
        return found | dict(zip(self.about[side]["numbers"], numbers.T))

    def frame(self, pairs):
        """The table that the Loader reads."""
        columns = self.columns("query", pairs["pair_query"]) | self.columns("content", pairs["pair_content"])
        if self.about["model"] == "dlrm":
            columns |= dict(zip(self.pairs, pairs["pair_numbers"].T))
            columns |= dict(zip(self.about["tasks"], pairs["labels"].T))
        return pd.DataFrame(columns)

    def train(self):
        self.model.fit(self.table, batch_size=self.about["batch_size"], verbose=0, epochs=1)

    def predictions(self, valid):
        if self.about["model"] == "dlrm":
            table = Dataset(self.frame(valid), schema=self.with_targets)
            made = self.batched(self.model, table)
            return {
                "probabilities": np.concatenate(
                    [
                        np.concatenate([batch[f"{task}/binary_output"] for batch in made])
                        for task in self.about["tasks"]
                    ],
                    axis=1,
                )
            }
        asked = Dataset(pd.DataFrame(self.columns("query", valid["pair_query"])), schema=self.query)
        every = np.arange(len(self.arrays["content_ids"]))
        contents = Dataset(pd.DataFrame(self.columns("content", every)), schema=self.content)
        return {
            "query_vectors": np.concatenate(self.batched(self.model.query_encoder, asked)),
            "content_vectors": np.concatenate(self.batched(self.model.candidate_encoder, contents)),
        }

    def batched(self, model, table):
        loader = mm.Loader(table, batch_size=8192, shuffle=False)
        return [model(x[0] if isinstance(x, tuple) else x, training=False) for x in loader]

    def versions(self):
        return {"versions": {"tensorflow": tf.__version__}}


if __name__ == "__main__":
    side = Merlin()
    serve({name: getattr(side, name) for name in ("load", "train", "predict", "versions")})
