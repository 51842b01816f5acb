"""Merlin Systems' side of the serving benchmark: the ensemble of its own multi-stage example.

Feast looks the user up, an NVTabular workflow encodes it, the query tower makes its vector, FAISS finds
candidates, Feast and NVTabular fetch and encode them, the user's features are unrolled beside them, a DLRM
scores them, softmax sampling orders them: NVIDIA-Merlin/Merlin, "Building and deploying multi-stage
recommender systems", notebooks 01 and 02. The data are drawn at random in the sizes asked for, with ids as
integers; the models are trained for one short pass, since only their size matters here.
"""

import sys
import warnings
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import models.names  # isort: skip  # noqa: F401  (Merlin Models on TensorFlow 2.15)

import feast
import merlin.models.tf as mm
import numpy as np
import nvtabular as nvt
import pandas as pd
import tensorflow as tf
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType, types
from merlin.dag.ops.subgraph import Subgraph
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema, Tags
from merlin.systems.dag.ensemble import Ensemble
from merlin.systems.dag.ops.faiss import QueryFaiss, setup_faiss
from merlin.systems.dag.ops.feast import QueryFeast
from merlin.systems.dag.ops.softmax_sampling import SoftmaxSampling
from merlin.systems.dag.ops.tensorflow import PredictTensorflow
from merlin.systems.dag.ops.unroll_features import UnrollFeatures
from merlin.systems.dag.ops.workflow import TransformWorkflow
from nvtabular.ops import (
    AddTags,
    Categorify,
    FillMissing,
    LogOp,
    Normalize,
    TagAsItemFeatures,
    TagAsItemID,
    TagAsUserFeatures,
    TagAsUserID,
)

#: Columns of our simulated world that fit here, with how many values each has; there are no histories.
USER = {
    "user_market": 5,
    "user_language": 5,
    "user_age_band": 5,
    "user_gender": 3,
    "user_hour": 24,
    "user_weekday": 7,
    "user_is_weekend": 2,
    "user_is_holiday": 2,
    "user_is_payday_window": 2,
    "user_is_shopping_day": 2,
}
ITEM = {"item_kind": 3, "item_seller": 600, "item_category": 30, "item_language": 5, "item_topic": 16}
NUMBERS = ("item_duration_s", "item_price_usd")
START = datetime(2026, 1, 1)


def tables(users, contents, rows, seed):
    """Users, items and a log of clicks on them, drawn at random."""
    rng = np.random.default_rng(seed)
    user_values = {name: rng.integers(0, size, users) for name, size in USER.items()}
    item_values = {name: rng.integers(0, size, contents) for name, size in ITEM.items()}
    user = pd.DataFrame({"user_id": np.arange(1, users + 1), **user_values}).astype(np.int32)
    item = pd.DataFrame({"item_id": np.arange(1, contents + 1), **item_values}).astype(np.int32)
    for name in NUMBERS:
        item[name] = rng.lognormal(2, 1, contents).astype(np.float32)
    # Each item is in the log, so that each has an id and an embedding of its own.
    picks = np.concatenate([np.arange(contents), rng.integers(0, contents, rows - contents)])
    log = pd.concat(
        [
            user.iloc[rng.integers(0, users, rows)].reset_index(drop=True),
            item.iloc[picks].reset_index(drop=True),
        ],
        axis=1,
    )
    log["click"] = rng.integers(0, 2, rows).astype(np.int32)
    return user, item, log


def feature_store(user, item, folder):
    """A Feast store with an SQLite online store, filled."""
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        "project: bench\nregistry: registry.db\nprovider: local\n"
        "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 2\n"
    )
    store = FeatureStore(str(folder))
    made = []
    for name, table in (("user", user), ("item", item)):
        table.assign(datetime=START, created=START).to_parquet(folder / f"{name}.parquet")
        entity = Entity(name=f"{name}_id", value_type=ValueType.INT32, join_keys=[f"{name}_id"])
        fields = [
            Field(name=column, dtype=types.Float32 if column in NUMBERS else types.Int32)
            for column in table.columns
            if column != f"{name}_id"
        ]
        made += [
            entity,
            FeatureView(
                name=f"{name}_features",
                entities=[entity],
                ttl=timedelta(0),
                schema=[*fields, Field(name=f"{name}_id", dtype=types.Int32)],
                online=True,
                source=FileSource(
                    path=str(folder / f"{name}.parquet"),
                    timestamp_field="datetime",
                    created_timestamp_column="created",
                ),
            ),
        ]
    store.apply(made)
    store.materialize(START - timedelta(days=1), START + timedelta(days=1))
    return store


def save(function, columns, output, path):
    """A SavedModel of a function of named columns."""

    class Served(tf.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    served = Served(function)
    signature = {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in columns.items()}

    @tf.function(input_signature=[signature])
    def call(inputs):
        return {output: function({name: x[:, tf.newaxis] for name, x in inputs.items()}, training=False)}

    served.call = call
    tf.saved_model.save(served, str(path), signatures={"serving_default": call})


class MerlinSystems:
    """Builds the model repository; Triton serves it."""

    def build(
        self, folder, contents, users, candidates, slate, dim, embedding_dim, hidden, bottom, top, seed
    ):
        folder = Path(folder)
        user, item, log = tables(users, contents, 2 * contents, seed)
        stats = str(folder / "stats")
        user_id = ["user_id"] >> Categorify(dtype="int32", out_path=stats) >> TagAsUserID()
        user_columns = list(USER) >> Categorify(dtype="int32", out_path=stats) >> TagAsUserFeatures()
        item_id = ["item_id"] >> Categorify(dtype="int32", out_path=stats) >> TagAsItemID()
        item_columns = list(ITEM) >> Categorify(dtype="int32", out_path=stats) >> TagAsItemFeatures()
        numbers = list(NUMBERS) >> FillMissing(0) >> LogOp() >> Normalize(out_dtype=np.float32)
        numbers = numbers >> TagAsItemFeatures() >> AddTags([Tags.CONTINUOUS])
        of_user = Subgraph("user", user_id + user_columns)
        of_item = Subgraph("item", item_id + item_columns + numbers)
        click = ["click"] >> AddTags([Tags.BINARY_CLASSIFICATION, Tags.TARGET])
        workflow = nvt.Workflow(of_user + of_item + click)
        encoded = Dataset(workflow.fit_transform(Dataset(log)).compute(), schema=workflow.output_schema)
        tf.keras.utils.set_random_seed(seed)
        two_tower, ranker = self._train(encoded, dim, embedding_dim, hidden, bottom, top)
        integers = {name: tf.int32 for name in ("user_id", *USER)}
        save(two_tower.query_encoder, integers, "query_vector", folder / "query_tower")
        integers |= {name: tf.int32 for name in ("item_id", *ITEM)}
        columns = integers | {name: tf.float32 for name in NUMBERS}
        save(ranker, columns, "click/binary_output", folder / "dlrm")

        items = workflow.get_subworkflow("item").transform(item)
        vectors = two_tower.candidate_encoder(
            {name: tf.constant(values.to_numpy()[:, None]) for name, values in items.items()}
        ).numpy()
        table = pd.DataFrame({"item_id": item["item_id"], "embedding": list(vectors)})
        setup_faiss(table, str(folder / "index.faiss"))

        store = feature_store(user, item, folder / "feast")
        user_attributes = ["user_id"] >> QueryFeast.from_feature_view(
            store=store, view="user_features", column="user_id", include_id=True
        )
        user_features = user_attributes >> TransformWorkflow(workflow.get_subworkflow("user"))
        retrieval = (
            user_features
            >> PredictTensorflow(str(folder / "query_tower"))
            >> QueryFaiss(str(folder / "index.faiss"), topk=candidates)
        )
        item_attributes = retrieval["candidate_ids"] >> QueryFeast.from_feature_view(
            store=store, view="item_features", column="candidate_ids", output_prefix="item", include_id=True
        )
        item_features = item_attributes >> TransformWorkflow(workflow.get_subworkflow("item"))
        combined = item_features >> UnrollFeatures("item_id", user_features[["user_id", *USER]])
        ranking = combined >> PredictTensorflow(str(folder / "dlrm"))
        ordering = combined["item_id"] >> SoftmaxSampling(
            relevance_col=ranking["click/binary_output"], topk=slate, temperature=0.00000001
        )
        ensemble = Ensemble(ordering, Schema([ColumnSchema("user_id", dtype=np.int32)]))
        (folder / "repository").mkdir()
        ensemble.export(str(folder / "repository"))
        sizes = {
            "query tower": two_tower.query_encoder.count_params(),
            "DLRM": ranker.count_params(),
        }
        return {"parameters": sizes}

    def _train(self, data, dim, embedding_dim, hidden, bottom, top):
        schema = data.schema
        towers = [
            mm.Encoder(
                mm.InputBlockV2(
                    part, categorical=mm.Embeddings(part.select_by_tag(Tags.CATEGORICAL), dim=embedding_dim)
                ),
                mm.MLPBlock([*hidden, dim], no_activation_last_layer=True),
            )
            for part in (schema.select_by_tag(Tags.USER), schema.select_by_tag(Tags.ITEM))
        ]
        two_tower = mm.TwoTowerModelV2(*towers)
        two_tower.compile(optimizer="adam")
        positives = Dataset(
            data.compute().query("click == 1").drop(columns="click"),
            schema=schema.select_by_tag([Tags.USER, Tags.ITEM]),
        )
        two_tower.fit(positives, batch_size=4096, epochs=1, steps_per_epoch=5, verbose=0)
        ranker = mm.DLRMModel(
            schema,
            embeddings=mm.Embeddings(schema.select_by_tag(Tags.CATEGORICAL), dim=embedding_dim),
            bottom_block=mm.MLPBlock([*bottom, embedding_dim]),
            top_block=mm.MLPBlock(list(top)),
            prediction_tasks=mm.BinaryOutput("click"),
        )
        ranker.compile(optimizer="adam")
        ranker.fit(data, batch_size=4096, epochs=1, steps_per_epoch=5, verbose=0)
        return two_tower, ranker

    def versions(self):
        import faiss
        import merlin.systems

        return {
            "versions": {
                "merlin-systems": merlin.systems.__version__,
                "nvtabular": nvt.__version__,
                "tensorflow": tf.__version__,
                "feast": feast.__version__,
                "faiss": faiss.__version__,
            }
        }


if __name__ == "__main__":
    from answering import serve

    warnings.filterwarnings("ignore")
    side = MerlinSystems()
    serve({"build": side.build, "versions": side.versions})
