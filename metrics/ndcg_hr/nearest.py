"""The k nearest items of some queries, collected from chunks of scores in a pruned pool, without a full sort."""

import numpy as np

from .distances import score_error, squared_distances


class NearestPool:
    """Candidates for the k nearest items of some queries.

    An entry is dropped only where at least k others are surely nearer: with scores off by at most e (distances.py),
    that is so above the k-th smallest score + 2 e. `finish` orders the survivors by float64 distance, then row.
    """

    BYTES_A_QUERY = 4 * 12 + 60  # per place: entries of 12 bytes up to the limit, and the sorting of one pool

    def __init__(self, k: int, queries: np.ndarray, items: np.ndarray, norms: np.ndarray) -> None:
        """`queries` (q, d), `items` (m, d) float32; `norms`  # (q,) float64, of the queries minus the catalog mean."""
        self.k = k
        self.queries = queries
        self.items = items
        self.norms = norms
        self.limit = 3 * k * len(norms) + 1024  # entries before pruning
        self.error = np.zeros(len(norms))
        self.cutoff = np.full(len(norms), np.inf, np.float32)  # scores above it are dropped
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, row (int32), score (float32)
        self.size = 0

    def add(self, cells: np.ndarray, first: int, largest: float) -> None:
        """Add a chunk: `cells` (q, width) float32 scores of the items from row `first` (infinite = excluded);
        `largest` bounds the norm of every item seen so far."""
        if not self.k:
            return
        width = cells.shape[1]
        self.error = score_error(self.norms, largest, self.items.shape[1])
        if np.isposinf(self.cutoff).any() and width > self.k:
            self._lower(kth_bound(cells, self.k))
        index = np.flatnonzero(np.less_equal(cells, self.cutoff[:, None]))
        step = max(self.limit, 65536)
        for start in range(0, len(index), step):
            query, column = np.divmod(index[start : start + step], width)
            score = cells[query, column]
            kept = (score <= self.cutoff[query]) & np.isfinite(score)
            entry = (query[kept].astype(np.int32), (column[kept] + first).astype(np.int32), score[kept])
            self.parts.append(entry)
            self.size += len(entry[0])
            if self.size > self.limit:
                self._prune()

    def _lower(self, kth: np.ndarray) -> None:
        """Lower the cutoff to `kth` (float32: k entries of the query score at most that) + twice the error."""
        bound = np.nextafter((kth + 2.0 * self.error).astype(np.float32), np.float32(np.inf))
        np.minimum(self.cutoff, bound, out=self.cutoff)

    def _merged(self):
        """All entries, by query and score: query, row, score, and the place within the query."""
        query, row, score = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        bits = score.view(np.uint32)
        bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # unsigned order = float order
        order = np.argsort((query.astype(np.uint64) << np.uint64(32)) | bits)
        query, row, score = query[order], row[order], score[order]
        return query, row, score, _places(query, len(self.norms))

    def _prune(self) -> None:
        query, row, score, place = self._merged()
        kth = np.full(len(self.norms), np.inf, np.float32)
        at = place == self.k - 1
        kth[query[at]] = score[at]
        self._lower(kth)
        kept = score <= self.cutoff[query]
        query, row, score = query[kept], row[kept], score[kept]
        if len(query) > self.limit // 2:  # many nearly equal items: only float64 can tell which to keep
            order, _, _ = self._exact(query, row)
            query, row, score = query[order], row[order], score[order]
        self.parts = [(query, row, score)]
        self.size = len(query)

    def _exact(self, query, row):
        """The k nearest of each query among the entries, in float64: indices in order, squared distances, places."""
        square = squared_distances(self.queries, self.items, query, row)
        order = _sorted_order(query, square, row, len(self.norms))
        place = _places(query[order], len(self.norms))
        kept = place < self.k
        return order[kept], square[order[kept]], place[kept]

    def finish(self, top_rows: np.ndarray, top_distances: np.ndarray) -> None:
        """Write the k nearest into `top_rows` (int32) and `top_distances` (float32); padding is left as it is."""
        if not self.size:
            return
        self._prune()
        query, row, _ = self.parts.pop()
        order, square, place = self._exact(query, row)
        top_rows[query[order], place] = row[order]
        top_distances[query[order], place] = np.sqrt(square)


def kth_bound(cells: np.ndarray, k: int) -> np.ndarray:
    """(q,) float32: no smaller than the k-th smallest of each row of `cells` (q, width > k), and close to it.

    It is the k-th smallest of the minima of column groups, which are distinct cells: a sixteenth of the sorting.
    """
    groups = max(256, 4 * k)
    minima = cells[:, :groups]
    if cells.shape[1] >= 2 * groups:
        minima = minima.copy()
        for start in range(groups, cells.shape[1] - groups + 1, groups):
            np.minimum(minima, cells[:, start : start + groups], out=minima)
    return np.partition(minima, k - 1, axis=1)[:, k - 1]


def _sorted_order(query: np.ndarray, square: np.ndarray, row: np.ndarray, n: int) -> np.ndarray:
    """Order by (query, squared distance, row) of entries already sorted by query and almost by distance: only queries
    with two neighbors in the wrong order are sorted."""
    behind = (square[1:] < square[:-1]) | ((square[1:] == square[:-1]) & (row[1:] < row[:-1]))
    unsorted = np.zeros(n, bool)
    unsorted[query[1:][behind & (query[1:] == query[:-1])]] = True
    order = np.arange(len(query))
    part = np.flatnonzero(unsorted[query])
    order[part] = part[np.lexsort((row[part], square[part], query[part]))]
    return order


def _places(query: np.ndarray, n: int) -> np.ndarray:
    """Position of each entry within its query's run; `query` is sorted."""
    counts = np.bincount(query, minlength=n)
    return np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
