"""Tables that a site keeps beside its images: CSV, TSV or Parquet, every value read as text."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data_adapters.errors import DataError


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the named columns of a table, row by row, stripped of blanks around values.

    Args:
        path: ``.parquet``, or text in UTF-8 with a header line: ``.tsv`` with tabs, else commas.

    Raises:
        DataError: The file is missing or no table, or a column is not in it.
    """
    try:
        header, rows = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(
            f"The table {path} cannot be read ({type(error).__name__}). It must be CSV or TSV in "
            "UTF-8 with a header line, or Parquet."
        ) from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(
            f"The table {path} has no column {missing[0]!r} among its {len(header)}. Its first "
            "line must name the columns, letter by letter."
        )
    places = [header.index(column) for column in columns]
    return [tuple(row[place].strip() for place in places) for row in rows]


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        tabs = path.suffix == ".tsv"
        rows = list(csv.reader(file, strict=True, delimiter="\t" if tabs else ","))
    header, *body = rows or [[]]
    filled = [row for row in body if any(row)]
    if any(len(row) != len(header) for row in filled):
        raise ValueError("a row has another number of values than the header")
    return [name.strip() for name in header], filled


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(
            f"Reading {path} needs pyarrow. Install it (pip install pyarrow), or save the table "
            "as CSV."
        ) from None
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError("not Parquet") from error
    columns = [["" if v is None else str(v) for v in c.to_pylist()] for c in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]
