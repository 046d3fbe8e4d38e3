"""What a batch of so many rows will take: a line through the batches of late, and what the machine has left now."""

from __future__ import annotations

MOST_CAUTION = 1.3  # more refuses what would be answered in time: at twice, sixteen clients of a slow model got nothing


class Cost:
    """Seconds of a batch of so many rows: ``scale * (fixed + each * rows)``.

    The line is fitted to hundreds of batches (least squares whose weights fall by ``1 - keep`` with each): in the last
    few, all of a request or two, the noise of the clock would pass for the price of a row, and requests would be
    refused that cost next to nothing. ``scale`` follows what the machine has left of late, and ``spread`` how far a
    batch is from what was foreseen (mean relative deviation, as TCP watches its round trips: RFC 6298).
    """

    def __init__(self, keep: float = 0.995, keep_scale: float = 0.9) -> None:
        self.keep, self.keep_scale, self.scale, self.spread = keep, keep_scale, 1.0, 0.0
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0
        self.fixed, self.each = 0.0, 0.0

    def saw(self, rows: float, seconds: float) -> None:
        for name, value in (("_weight", 1.0), ("_rows", rows), ("_seconds", seconds), ("_squares", rows * rows),
                            ("_products", rows * seconds)):  # fmt: skip
            setattr(self, name, self.keep * getattr(self, name) + value)
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - mean_rows**2
        both = self._products / self._weight - mean_rows * mean_seconds
        if spread > 1e-6 * (1 + mean_rows**2):
            self.each = min(max(both / spread, 0.0), mean_seconds / mean_rows)
        else:  # batches of one size: a line through their mean and half of it at no rows
            self.each = min(self.each or 0.5 * mean_seconds / mean_rows, mean_seconds / mean_rows)
        self.fixed = max(0.0, mean_seconds - self.each * mean_rows)
        expected = self.fixed + self.each * rows
        ratio = min(max(seconds / expected, 0.1), 10.0) if expected else 1.0
        self.spread = self.keep_scale * self.spread + (1 - self.keep_scale) * abs(ratio / self.scale - 1)
        self.scale = self.keep_scale * self.scale + (1 - self.keep_scale) * ratio

    @property
    def caution(self) -> float:
        """What a wait may take at most, of what it should."""
        return min(MOST_CAUTION, 1 + 3 * self.spread)

    def seconds(self, rows: float, batches: float = 1.0) -> float:
        return self.scale * (self.fixed * batches + self.each * rows)

    def rows_within(self, seconds: float) -> float:
        """Rows of a batch that takes so long; endless while nothing is known."""
        return (seconds / self.scale - self.fixed) / self.each if self.each > 0 else float("inf")
