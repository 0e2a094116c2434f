"""Columns that are in the names of folders: `year=2024/month=1/rows.parquet`, as Hive has it.

A column is one of whole numbers only if each name is the one that its number would be written as. So no two folders become one
value, as `plz=01067` and `plz=1067` would, and what is a number in one dataset can be the text again that it is in another.
"""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

import pyarrow as pa

from worker.discovery import Found
from worker.errors import DataError

Partition = tuple[str, int | str | None]
"""A column that is the same in all rows of a file: its name and value."""

NULL: Final = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark call the folder of rows without a value."""


def partitions_of(files: Sequence[Found]) -> list[tuple[Partition, ...]]:
    """Return what each file's folders say of its rows: whole numbers where all files have those, else text.

    Raises:
        DataError: a file's folders name other columns than the first one's, or a column twice.
    """
    texts = [_texts(file) for file in files]
    for file, found in zip(files, texts, strict=True):
        for name in texts[0].keys() ^ found.keys():
            with_it, without = (files[0], file) if name in texts[0] else (file, files[0])
            raise DataError(f"{without.place.address}: lies in no folder '{name}=…', but {with_it.place.address} does")
    whole = {name for name in texts[0] if all(_is_whole(found[name]) for found in texts)}
    return [tuple((name, _value(found[name], whole=name in whole)) for name in texts[0]) for found in texts]


def partition_fields(partitions: Sequence[tuple[Partition, ...]]) -> list[pa.Field]:
    """Return the columns that all files' folders make up."""
    names = [name for name, _ in partitions[0]]
    values = zip(*((value for _, value in found) for found in partitions), strict=True)
    types = [pa.string() if any(isinstance(value, str) for value in column) else pa.int64() for column in values]
    return [pa.field(name, arrow) for name, arrow in zip(names, types, strict=True)]


def _texts(file: Found) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder in file.folders:
        name, equals, value = folder.partition("=")
        if not equals or not name:
            continue
        name = unquote(name)
        if name in found:
            raise DataError(f"{file.place.address}: lies in two folders '{name}=…'; a column has one value")
        found[name] = None if value == NULL else unquote(value)
    return found


def _is_whole(value: str | None) -> bool:
    return value is None or (re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None)


def _value(text: str | None, *, whole: bool) -> int | str | None:
    return int(text) if whole and text is not None else text
