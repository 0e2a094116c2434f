"""Values of a table's columns as arrays and labels, and errors that name what can't be used.

Shapes: N rows, V values of a column.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray, Floats
from worker.columns import Column, Numbers
from worker.dates import DAYS_WITH_PARTS, in_parts, whole, written_moment
from worker.errors import DataError

Label = int | str | bool
Where = Callable[[int], str]
"""Names the file and row of a row of the table at hand, for errors."""

MOST_WEIGHT: Final = 1e30
"""So that sums of weights stay finite in float32."""

LABEL_TYPES: Final = {"text": pa.string(), "boolean": pa.bool_()}
"""Of classes and categories of these kinds; others are whole numbers."""

CALENDAR: Final = ("date", "timestamp", "time", "duration")


def read_numbers(table: pa.Table, numbers: Numbers, where: Where, *, gaps: bool) -> AnyArray:
    """Return a column's values (N, V), lists flattened, of whatever numeric type they are.

    Args:
        table: N rows.
        numbers: what is read.
        where: names a row for an error.
        gaps: whether nulls become NaN; else they are refused.

    Raises:
        DataError: a value is null where that is refused, or a time zone is unknown.
    """
    column = numbers.column
    values = plain_values(table, column.name)
    if not gaps:
        refuse_nulls(values, column.name, where)
    if pa.types.is_null(values.type):
        return np.full((len(values), len(numbers.names)), np.nan)
    if column.width is not None:
        return _entries(values, column, column.width, where, gaps=gaps)
    if column.kind not in CALENDAR:
        return _as_array(values).reshape(-1, 1)
    try:
        if not numbers.parts:
            return whole(values).reshape(-1, 1)
        if column.kind in ("date", "timestamp"):
            _refuse_far(values, column, where)
        return in_parts(values, numbers.parts, cyclical=numbers.cyclical)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where(0)}, column '{column.name}': {error}") from error


def _refuse_far(values: pa.Array, column: Column, where: Where) -> None:
    """Raise DataError for the first date that is too far away to have parts: Arrow counts years in 16 bits."""
    days_N = whole(values)
    far_N = np.abs(days_N) > DAYS_WITH_PARTS
    if far_N.any():
        row = int(np.argmax(far_N))
        raise DataError(
            f"{where(row)}, column '{column.name}': the year of {written_moment(days_N[row], clock=False)} is out of reach of "
            "parts; accepted are years from -28000 to 31900, or the column without parts"
        )


def _entries(values: pa.Array, column: Column, width: int, where: Where, *, gaps: bool) -> AnyArray:
    entries = values.flatten()  # which leaves null lists out
    if not gaps:
        refuse_nulls(entries, column.name, lambda entry: where(entry // width))
    found = _as_array(entries).reshape(-1, width)
    if values.null_count == 0:
        return found
    all_NV = np.full((len(values), width), np.nan)
    all_NV[values.is_valid().to_numpy(zero_copy_only=False)] = found
    return all_NV


def _as_array(values: pa.Array) -> AnyArray:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    elif pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    array: AnyArray = values.to_numpy(zero_copy_only=False)  # with NaN for nulls, in float64 where the type has none
    return array


def read_weights(table: pa.Table, column: Column, where: Where) -> Floats:
    """Return the weights of rows (N, 1) in float64. Raises DataError for one that is null, negative or not finite."""
    weights_N1: Floats = read_numbers(table, Numbers(column), where, gaps=False).astype(np.float64, copy=False)
    bad_N = ~((weights_N1 >= 0) & (weights_N1 <= MOST_WEIGHT))[:, 0]
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise DataError(
            f"{where(row)}, column '{column.name}': {weights_N1[row, 0]:g} is no weight; accepted are numbers from 0 on"
        )
    return weights_N1


def not_finite(table: pa.Table, numbers: Numbers, where: Where, row: int, entry: int, dtype: str) -> DataError:
    """Return the error for a value that is not a finite number of this type."""
    value = table.column(numbers.column.name)[row].as_py()
    shown = value[entry] if isinstance(value, list) else value
    return DataError(
        f"{where(row)}, column '{numbers.names[entry]}': {shown} is not a finite {dtype} number; mend or leave out the row"
    )


def label_values(table: pa.Table, column: Column, where: Where, *, gaps: bool = False) -> pa.Array:
    """Return classes or categories as one array of int64, bool or string.

    Args:
        table: N rows.
        column: which one.
        where: names a row for an error.
        gaps: whether nulls are let through; else they are refused.

    Raises:
        DataError: a value is null where that is refused, or no label.
    """
    values = plain_values(table, column.name)
    if not gaps:
        refuse_nulls(values, column.name, where)
    wanted = LABEL_TYPES.get(column.kind, pa.int64())
    fits = wanted == pa.int64() and pa.types.is_integer(values.type) and values.type != pa.uint64()
    if fits or column.kind == "text" or pa.types.is_null(values.type):
        return values.cast(wanted)
    if pa.types.is_float16(values.type) or (pa.types.is_decimal(values.type) and column.kind == "boolean"):
        values = values.cast(pa.float64())  # which Arrow can compare, and cast
    if gaps and pa.types.is_floating(values.type):  # whole numbers with gaps, as many tools keep them
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    labels = values.cast(wanted, safe=False)
    same = pc.equal(labels.cast(values.type, safe=False), values)
    if pa.types.is_uint64(values.type) and column.kind != "boolean":  # from 2⁶³ on, there and back again ends where it began
        same = pc.and_(same, pc.greater_equal(labels, 0))
    same = pc.fill_null(same, fill_value=True)
    if not pc.all(same).as_py():
        row = first_true(pc.invert(same))
        accepted = "true and false" if column.kind == "boolean" else "whole numbers from -2⁶³ to 2⁶³ - 1"
        raise DataError(f"{where(row)}, column '{column.name}': {values[row].as_py()} is no class; accepted are {accepted}")
    return labels


def plain_values(table: pa.Table, name: str) -> pa.Array:
    """Return a column in one piece, and a dictionary's entries in place of their numbers."""
    column = table.column(name)
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def refuse_nulls(values: pa.Array, name: str, where: Where) -> None:
    """Raise DataError for the first null."""
    if values.null_count:
        raise DataError(
            f"{where(first_true(values.is_null()))}, column '{name}' has no value (null); "
            "every label, weight and feature needs one: fill it in, leave out the row, or set data.missing for features or "
            "data.unlabelled for labels"
        )


def first_true(flags: pa.Array) -> int:
    """Return the place of the first true entry."""
    return int(np.argmax(flags.to_numpy(zero_copy_only=False)))
