"""Writes two tables that come with scikit-learn, breast cancer and digits, as CSV and Parquet.

    python benchmarks/export_tables.py build

They are real input for `bpaccel train`: the README shows the commands.
"""

import argparse
import csv
from pathlib import Path


def breast_cancer():
    """569 tumours: 30 measurements of each, and whether it is benign or malignant (the column ``diagnosis``)."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return dict(zip(map(str, data.feature_names), data.data.T)) | {"diagnosis": data.target_names[data.target]}


def digits():
    """1,797 handwritten digits: 64 grey values of each, and which digit it is (the column ``digit``)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return dict(zip(map(str, data.feature_names), data.data.T)) | {"digit": data.target}


TABLES = {"breast_cancer": breast_cancer, "digits": digits}


def write_csv(path, columns):
    """Write a dict of columns as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values())))


def write_parquet(path, columns):
    """Write a dict of columns as Parquet (needs pyarrow)."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: pyarrow.array(column.tolist()) for name, column in columns.items()}), path)


def export(folder):
    """Write all tables in both forms, and return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in TABLES.items():
        columns = make()
        for ending, write in ((".csv", write_csv), (".parquet", write_parquet)):
            paths.append(folder / f"{name}{ending}")
            write(paths[-1], columns)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="build", help="where to (default: build)")
    for path in export(parser.parse_args().folder):
        print(path)
