"""Minimum-cost matching of n rows to n of m >= n columns, by shortest augmenting paths (Jonker & Volgenant 1987).

Exact, O(n^2 m) with the inner loop in numpy: meant for the few dozen items that share a prefix.
"""

from __future__ import annotations

import numpy as np


def cheapest_matching(costs: np.ndarray) -> np.ndarray:
    """(n, m) finite costs, n <= m -> (n,) the column of each row, all different, least sum."""
    num_rows, num_columns = costs.shape
    costs = costs.astype(np.float64)
    row_of = np.full(num_columns, -1)
    row_price, column_price = np.zeros(num_rows), np.zeros(num_columns)
    for start in range(num_rows):
        best = np.full(num_columns, np.inf)  # length of the shortest path to each column
        came_from = np.full(num_columns, -1)  # the column before it on that path
        done = np.zeros(num_columns, bool)
        row, length, previous = start, 0.0, -1
        visited: list[int] = []
        while True:
            reach = length + costs[row] - row_price[row] - column_price
            shorter = ~done & (reach < best)
            best[shorter], came_from[shorter] = reach[shorter], previous
            previous = int(np.where(done, np.inf, best).argmin())
            length = best[previous]
            if row_of[previous] < 0:
                break
            done[previous] = True
            visited.append(previous)
            row = int(row_of[previous])
        row_price[start] += length
        for column in visited:
            row_price[row_of[column]] += length - best[column]
            column_price[column] -= length - best[column]
        while previous >= 0:  # shift the matching along the path
            before = int(came_from[previous])
            row_of[previous] = row_of[before] if before >= 0 else start
            previous = before
    columns = np.flatnonzero(row_of >= 0)
    answer = np.empty(num_rows, np.int64)
    answer[row_of[columns]] = columns
    return answer
