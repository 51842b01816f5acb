"""PyTorch's side of the training benchmark: the same DLRM and two-tower in plain modules.

Tables are `EmbeddingBag`s, histories their means, and a fused `Adam` updates everything: with tables
of some thousand rows that was faster than sparse gradients and `SparseAdam` (47 ms of CPU a batch, not 65).
"""

from itertools import pairwise

import torch
from answering import serve
from arrays import Trained
from torch import nn
from torch.nn import functional


class Lookup(nn.Module):
    """A table for each domain; scalars and means of histories, [B, F, D]."""

    def __init__(self, columns, dim):
        super().__init__()
        self.columns = columns
        self.tables = nn.ModuleDict(
            {
                column["domain"]: nn.EmbeddingBag(column["rows"], dim, mode="mean", padding_idx=0)
                for column in columns
            }
        )
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, ids):
        parts = torch.split(ids, [column["width"] for column in self.columns], dim=1)
        return torch.stack(
            [self.tables[column["domain"]](part) for column, part in zip(self.columns, parts)], dim=1
        )


def mlp(widths, last=True):
    layers = []
    for place, (wide, narrow) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(wide, narrow))
        nn.init.xavier_uniform_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        if last or place < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    def __init__(self, about, pair_numbers):
        super().__init__()
        dim, columns = about["embedding_dim"], about["query"]["columns"] + about["content"]["columns"]
        self.lookup = Lookup(columns, dim)
        numbers = sum(len(about[side]["numbers"]) for side in ("query", "content")) + pair_numbers
        self.bottom = mlp([numbers, *about["bottom"], dim])
        count = len(columns) + 1
        lower = torch.tril_indices(count, count, -1)
        self.register_buffer("pairs", lower[0] * count + lower[1])
        self.top = mlp([dim + len(self.pairs), *about["top"]])
        self.heads = nn.Linear(about["top"][-1], len(about["tasks"]))

    def forward(self, ids, numbers):
        bottom = self.bottom(numbers)
        z = torch.cat([bottom[:, None], self.lookup(ids)], dim=1)
        products = torch.bmm(z, z.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.heads(self.top(torch.cat([bottom, products], dim=1)))

    def loss(self, ids, numbers, labels):
        found = functional.binary_cross_entropy_with_logits(self(ids, numbers), labels, reduction="none")
        return found.sum(dim=1).mean()


class Tower(nn.Module):
    def __init__(self, lookup, numbers, widths):
        super().__init__()
        self.lookup = lookup
        dim = next(iter(lookup.tables.values())).embedding_dim
        self.layers = mlp([len(lookup.columns) * dim + numbers, *widths], last=False)

    def forward(self, ids, numbers):
        return functional.normalize(self.layers(torch.cat([self.lookup(ids).flatten(1), numbers], dim=1)))


class TwoTower(nn.Module):
    """Histories share the content's tables, as ours do."""

    def __init__(self, about):
        super().__init__()
        self.temperature = about["temperature"]
        dim = about["embedding_dim"]
        query, content = (Lookup(about[side]["columns"], dim) for side in ("query", "content"))
        query.tables.update({name: table for name, table in content.tables.items() if name in query.tables})
        widths = [*about["hidden"], about["dim"]]
        self.query = Tower(query, len(about["query"]["numbers"]), widths)
        self.content = Tower(content, len(about["content"]["numbers"]), widths)

    def loss(self, query_ids, query_numbers, content_ids, content_numbers, content, log_q):
        queries = self.query(query_ids, query_numbers)
        logits = queries @ self.content(content_ids, content_numbers).T / self.temperature - log_q
        same = content[:, None] == content
        same.fill_diagonal_(False)
        return functional.cross_entropy(logits.masked_fill(same, -1e9), torch.arange(len(logits)))


class Torch(Trained):
    """One model and its data."""

    def build(self):
        torch.manual_seed(self.about["seed"])
        self.tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        if self.about["model"] == "dlrm":
            self.model = DLRM(self.about, self.arrays["pair_numbers"].shape[1])
        else:
            self.model = TwoTower(self.about)
            place = [c["name"] for c in self.about["content"]["columns"]].index(self.about["item_id"])
            self.item = self.tensors["content_ids"][:, place]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.about["learning_rate"], fused=True)

    def train(self):
        for rows in self.next_batches():
            self.optimizer.zero_grad(set_to_none=True)
            self.model.loss(*self.columns(torch.from_numpy(rows))).backward()
            self.optimizer.step()

    def columns(self, rows):
        query, content = self.rows_of("pair_query", rows), self.rows_of("pair_content", rows)
        if self.about["model"] == "dlrm":
            ids, numbers = self.joined(query, content, self.rows_of("pair_numbers", rows))
            return self.forgotten(ids), numbers, self.rows_of("labels", rows)
        return (
            self.rows_of("query_ids", query),
            self.rows_of("query_numbers", query),
            self.rows_of("content_ids", content),
            self.rows_of("content_numbers", content),
            self.item.index_select(0, content),
            self.rows_of("log_q", rows),
        )

    def forgotten(self, ids):
        """A share of the user and content ids as unseen ones, as our batches have it."""
        what = self.about["forgotten"]
        for place in what["places"]:
            ids[torch.rand(len(ids)) < what["share"], place] = what["id"]
        return ids

    def rows_of(self, name, rows):
        return self.tensors[name].index_select(0, rows)

    def joined(self, query, content, pair_numbers):
        """Ids and numbers of pairs, as the DLRM reads them."""
        ids = [self.rows_of("query_ids", query), self.rows_of("content_ids", content)]
        numbers = [self.rows_of("query_numbers", query), self.rows_of("content_numbers", content)]
        return torch.cat(ids, dim=1), torch.cat([*numbers, pair_numbers], dim=1)

    @torch.no_grad()
    def predictions(self, valid):
        query = torch.from_numpy(valid["pair_query"])
        if self.about["model"] == "dlrm":
            content, numbers = (torch.from_numpy(valid[name]) for name in ("pair_content", "pair_numbers"))
            return {"probabilities": torch.sigmoid(self.model(*self.joined(query, content, numbers))).numpy()}
        given = self.tensors
        vectors = self.model.query(self.rows_of("query_ids", query), self.rows_of("query_numbers", query))
        contents = self.model.content(given["content_ids"], given["content_numbers"])
        return {"query_vectors": vectors.numpy(), "content_vectors": contents.numpy()}

    def versions(self):
        return {"versions": {"torch": torch.__version__, "threads": torch.get_num_threads()}}


if __name__ == "__main__":
    side = Torch()
    serve({name: getattr(side, name) for name in ("load", "train", "predict", "versions")})
