"""l(b), the seconds that a batch of b rows takes: learned from every batch, by power of two."""


class LatencyModel:
    """Mean plus mean deviation by size class, exponentially weighted; not thread-safe, no I/O.

    `prior` holds what registration measured (rows to seconds). A size never seen is predicted from its
    neighbours, on the safe side: the next larger class bounds it from above, a smaller one in proportion
    to the rows.

    >>> model = LatencyModel({1: 0.001}); model.predict(1), model.predict(8)
    (0.001, 0.008)
    """

    CLASSES = 32
    WEIGHT = 0.2

    def __init__(self, prior: dict[int, float] | None = None) -> None:
        self._mean: list[float] = [0.0] * self.CLASSES
        self._deviation: list[float] = [0.0] * self.CLASSES
        self._table: list[float] = [0.0] * self.CLASSES
        for rows, seconds in (prior or {}).items():
            self.learn(rows, seconds)

    def learn(self, rows: int, seconds: float) -> None:
        """Take in one finished batch."""
        k = rows.bit_length()
        mean = self._mean[k]
        if mean == 0.0:
            self._mean[k] = seconds
        else:
            error = seconds - mean
            self._mean[k] = mean + self.WEIGHT * error
            self._deviation[k] += self.WEIGHT * (abs(error) - self._deviation[k])
        self._table[k] = self._mean[k] + self._deviation[k]

    def predict(self, rows: int) -> float:
        """Seconds that a batch of `rows` (>= 1) will take; 0 while nothing at all is known."""
        k = rows.bit_length()
        known = self._table[k]
        if known:
            return known
        lower = next((j for j in range(k - 1, 0, -1) if self._table[j]), None)
        upper = next((j for j in range(k + 1, self.CLASSES) if self._table[j]), None)
        in_proportion: float | None = (
            self._table[lower] * float(1 << (k - lower)) if lower is not None else None
        )
        bound = self._table[upper] if upper is not None else None
        if in_proportion is not None and bound is not None:
            return min(in_proportion, bound)
        return in_proportion or bound or 0.0
