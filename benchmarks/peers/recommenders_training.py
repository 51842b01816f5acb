"""TensorFlow Recommenders' side of the training benchmark: its models, tasks and `fit`.

A Keras `Embedding` for each domain, histories their means, its dot interaction and its retrieval task; a
`tf.data` pipeline gathers each batch from tensors.
"""

import os

import numpy as np
from answering import serve
from arrays import Trained

os.environ["TF_NUM_INTRAOP_THREADS"] = "0"  # TensorFlow's own choice, not ours
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
import tensorflow_recommenders as tfrs


def mlp(widths, last="relu"):
    activations = ["relu"] * (len(widths) - 1) + [last]
    return tf.keras.Sequential([tf.keras.layers.Dense(w, activation=a) for w, a in zip(widths, activations)])


class Lookup(tf.keras.layers.Layer):
    """Embeddings of columns, a list of [B, D]."""

    def __init__(self, columns, dim, tables):
        super().__init__()
        self.columns, self.tables = columns, tables
        for column in columns:
            if column["domain"] not in tables:
                tables[column["domain"]] = tf.keras.layers.Embedding(column["rows"], dim)

    def call(self, ids):
        found = []
        for column, part in zip(self.columns, tf.split(ids, [c["width"] for c in self.columns], axis=1)):
            if column["width"] == 1:
                found.append(self.tables[column["domain"]](part[:, 0]))
            else:  # Keras' masked mean of an empty history is not a number
                known = tf.cast(part != 0, tf.float32)[..., tf.newaxis]
                total = tf.reduce_sum(self.tables[column["domain"]](part) * known, axis=1)
                found.append(tf.math.divide_no_nan(total, tf.reduce_sum(known, axis=1)))
        return found


class DLRM(tfrs.models.Model):
    def __init__(self, about):
        super().__init__()
        dim, columns = about["embedding_dim"], about["query"]["columns"] + about["content"]["columns"]
        self.lookup = Lookup(columns, dim, {})
        self.bottom = mlp([*about["bottom"], dim])
        self.interaction = tfrs.layers.feature_interaction.DotInteraction()
        self.top = mlp(about["top"])
        self.heads = tf.keras.layers.Dense(len(about["tasks"]), activation="sigmoid")
        loss = tf.keras.losses.BinaryCrossentropy(reduction=tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE)
        self.task = tfrs.tasks.Ranking(loss=loss)

    def call(self, inputs):
        ids, numbers = inputs
        bottom = self.bottom(numbers)
        pairs = self.interaction([bottom, *self.lookup(ids)])
        return self.heads(self.top(tf.concat([bottom, pairs], axis=1)))

    def compute_loss(self, inputs, training=False):
        ids, numbers, labels = inputs
        # Mean over the tasks by the loss; ours is their sum.
        return labels.shape[1] * self.task(labels, self((ids, numbers)))


class Tower(tf.keras.Model):
    def __init__(self, columns, about, tables):
        super().__init__()
        self.lookup = Lookup(columns, about["embedding_dim"], tables)
        self.layers_ = mlp([*about["hidden"], about["dim"]], last=None)

    def call(self, inputs):
        ids, numbers = inputs
        return tf.math.l2_normalize(self.layers_(tf.concat([*self.lookup(ids), numbers], axis=1)), axis=1)


class TwoTower(tfrs.models.Model):
    """Histories share the content's tables, as ours do."""

    def __init__(self, about):
        super().__init__()
        tables: dict = {}
        self.content = Tower(about["content"]["columns"], about, tables)
        self.query = Tower(about["query"]["columns"], about, tables)
        self.task = tfrs.tasks.Retrieval(
            loss=tf.keras.losses.CategoricalCrossentropy(
                from_logits=True, reduction=tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE
            ),
            temperature=about["temperature"],
            remove_accidental_hits=True,
        )

    def compute_loss(self, inputs, training=False):
        query_ids, query_numbers, content_ids, content_numbers, item, log_q = inputs
        return self.task(
            self.query((query_ids, query_numbers)),
            self.content((content_ids, content_numbers)),
            candidate_ids=item,
            candidate_sampling_probability=tf.exp(log_q),
            compute_metrics=False,
        )


class Recommenders(Trained):
    """One model and its data."""

    def build(self):
        tf.keras.utils.set_random_seed(self.about["seed"])
        self.tensors = {name: tf.constant(array) for name, array in self.arrays.items()}
        self.model = DLRM(self.about) if self.about["model"] == "dlrm" else TwoTower(self.about)
        self.model.compile(optimizer=tf.keras.optimizers.Adam(self.about["learning_rate"]))
        if self.about["model"] != "dlrm":
            place = [c["name"] for c in self.about["content"]["columns"]].index(self.about["item_id"])
            self.item = self.tensors["content_ids"][:, place]

    def train(self):
        batches = self.next_batches()
        rows = tf.RaggedTensor.from_row_lengths(np.concatenate(batches), [len(batch) for batch in batches])
        data = tf.data.Dataset.from_tensor_slices(rows).map(self.columns).prefetch(tf.data.AUTOTUNE)
        self.model.fit(data, epochs=1, verbose=0)

    def columns(self, rows):
        given = self.tensors
        query, content = tf.gather(given["pair_query"], rows), tf.gather(given["pair_content"], rows)
        if self.about["model"] == "dlrm":
            ids, numbers = self.joined(query, content, tf.gather(given["pair_numbers"], rows))
            return self.forgotten(ids), numbers, tf.gather(given["labels"], rows)
        return (
            tf.gather(given["query_ids"], query),
            tf.gather(given["query_numbers"], query),
            tf.gather(given["content_ids"], content),
            tf.gather(given["content_numbers"], content),
            tf.gather(self.item, content),
            tf.gather(given["log_q"], rows),
        )

    def forgotten(self, ids):
        """A share of the user and content ids as unseen ones, as our batches have it."""
        what = self.about["forgotten"]
        count = len(what["places"])
        drawn = tf.random.uniform([tf.shape(ids)[0], count]) < what["share"]
        never = tf.zeros([tf.shape(ids)[0], 1], tf.bool)
        which = [what["places"].index(p) if p in what["places"] else count for p in range(ids.shape[1])]
        hidden = tf.gather(tf.concat([drawn, never], axis=1), which, axis=1)
        return tf.where(hidden, tf.cast(what["id"], ids.dtype), ids)

    def joined(self, query, content, pair_numbers):
        """Ids and numbers of pairs, as the DLRM reads them."""
        given = self.tensors
        ids = [tf.gather(given["query_ids"], query), tf.gather(given["content_ids"], content)]
        numbers = [
            tf.gather(given["query_numbers"], query),
            tf.gather(given["content_numbers"], content),
            pair_numbers,
        ]
        return tf.concat(ids, axis=1), tf.concat(numbers, axis=1)

    def predictions(self, valid):
        given = self.tensors
        if self.about["model"] == "dlrm":
            inputs = self.joined(valid["pair_query"], valid["pair_content"], valid["pair_numbers"])
            return {"probabilities": self.model(inputs).numpy()}
        query = valid["pair_query"]
        asked = tf.gather(given["query_ids"], query), tf.gather(given["query_numbers"], query)
        return {
            "query_vectors": self.model.query(asked).numpy(),
            "content_vectors": self.model.content((given["content_ids"], given["content_numbers"])).numpy(),
        }

    def versions(self):
        return {"versions": {"tensorflow": tf.__version__, "tensorflow-recommenders": tfrs.__version__}}


if __name__ == "__main__":
    side = Recommenders()
    serve({name: getattr(side, name) for name in ("load", "train", "predict", "versions")})
