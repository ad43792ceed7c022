"""Write a table of made-up houses, after the California census that everybody knows: the same columns, similar ranges.

    python docs/housing.py housing.csv [rows]

The price, in 100,000 dollars, follows income, age and the distance to two cities, with a noise that grows with it; of a
few houses in a hundred it was written down wrong.
"""

import sys

import numpy as np


def houses(n=5000, seed=0):
    """A dict of columns of shape (n,)."""
    random = np.random.default_rng(seed)
    north = random.random(n) < 0.4
    latitude = np.where(north, 37.8, 34.0) + random.gamma(1.5, 0.7, n) * random.choice([-1, 1], n)
    longitude = np.where(north, -122.3, -118.2) + random.gamma(1.2, 0.7, n) * random.choice([-0.3, 1], n)
    income = np.exp(random.normal(1.25, 0.45, n))
    age = random.integers(1, 53, n)
    rooms = 2.5 + 0.7 * income + random.gamma(2.0, 0.4, n)
    away = np.minimum(np.hypot(latitude - 37.8, longitude + 122.3), np.hypot(latitude - 34.0, longitude + 118.2))
    price = 0.25 + 0.42 * income + 1.2 * np.exp(-2.0 * away) * np.sqrt(income) + 0.006 * age
    price *= np.exp(random.normal(0.0, 0.15, n))
    price = np.where(random.random(n) < 0.03, 10.0 * price, price)  # a digit too much
    return {
        "income": income,
        "age": age,
        "rooms": rooms,
        "bedrooms": rooms / 5.0 + random.normal(0.0, 0.05, n),
        "people": random.gamma(6.0, 0.5, n),
        "latitude": latitude,
        "longitude": longitude,
        "price": price,
    }


def write(path, n=5000):
    """Write the table as CSV."""
    columns = houses(n)
    np.savetxt(path, np.stack(list(columns.values()), axis=1), fmt="%.6g", delimiter=",", header=",".join(columns),
               comments="")  # fmt: skip


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5000)
