"""Damaged Parquet: of its table (types, names, rows, cells), then of its bytes; and a plain reading of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz.mutate import BYTE_CHANGES
from benchmarks.fuzz.pools import MARKS, NUMBERS, TIMES, UNITS


@dataclass(frozen=True)
class Parquet:
    """A valid Parquet file as a table, and which columns hold times, units and numbers."""

    table: pa.Table
    times: tuple[str, ...]
    units: tuple[str, ...]
    numbers: tuple[str, ...]
    codes: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return written(self.table)


def written(table: pa.Table, **options: object) -> bytes:
    """Write a table as Parquet."""
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def mutated(seed: Parquet, rng: Random) -> bytes:
    """One damaged copy: up to three changes of the table, or one of bytes, or both."""
    tables, raw = rng.choice(((1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (0, 1), (1, 1)))
    table = seed.table
    for _ in range(tables):
        try:
            table = rng.choice(CHANGES)(rng, table, seed)
        except (
            pa.ArrowException,
            ArithmeticError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            NotImplementedError,
        ):
            continue  # a change that this table does not allow
    data = _serialised(rng, table)
    for _ in range(raw):
        data = rng.choice(BYTE_CHANGES)(rng, data, [data])
    return data


def _serialised(rng: Random, table: pa.Table) -> bytes:
    options = {
        "compression": rng.choice(("snappy", "none", "gzip", "zstd", "brotli")),
        "version": rng.choice(("2.6", "2.4", "1.0")),
        "data_page_version": rng.choice(("1.0", "2.0")),
        "use_dictionary": rng.random() < 0.5,
        "store_schema": rng.random() < 0.7,
        "row_group_size": rng.choice((None, 1, 2)),
    }
    try:
        return written(table, **options)
    except (pa.ArrowException, OverflowError, ValueError):
        return written(table.slice(0, 0).select([]))


def rows_of(data: bytes) -> list[dict[str, object]]:
    """Rows of a Parquet file; of a name twice the first counts; none of a file that cannot be read whole."""
    try:
        with pq.ParquetFile(io.BytesIO(data), coerce_int96_timestamp_unit="us") as file:
            names = dict.fromkeys(file.schema_arrow.names)
            columns = [(name, found) for name in names if (found := _column(file, name)) is not None]
    except (pa.ArrowException, OSError):
        return []
    rows = max((len(column) for _, column in columns), default=0)
    return [{name: cell(column, row) for name, column in columns if row < len(column)} for row in range(rows)]


def _column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray | None:
    """One column, by itself: damage to another does not matter."""
    try:
        found = file.read(columns=[name])
    except (pa.ArrowException, OSError):
        return None
    return found.column(0) if found.num_columns else None


def cell(column: pa.ChunkedArray, row: int) -> object:
    """One cell; None where Python does not have it (a time of the year 290,000)."""
    try:
        return column[row].as_py()
    except (ValueError, OverflowError, UnicodeDecodeError):
        return None


def _name(rng: Random, table: pa.Table, of: Sequence[str] = ()) -> str:
    return rng.choice([name for name in of or table.column_names if name in table.column_names])


def _cells(table: pa.Table, name: str, cells: list[object], kind: pa.DataType | None = None) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(cells, kind or table.column(at).type))


def _changed(rng: Random, table: pa.Table, name: str, new: object) -> pa.Table:
    """Put a value into one cell of a column, or into all."""
    cells = table[name].to_pylist()
    if rng.random() < 0.3:
        return _cells(table, name, [new] * len(cells))
    cells[rng.randrange(len(cells))] = new
    return _cells(table, name, cells)


def _number(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    name = _name(rng, table, seed.numbers)
    kind = table.schema.field(name).type
    text = rng.choice(NUMBERS).replace(",", "").strip()
    return _changed(rng, table, name, Decimal(text) if pa.types.is_decimal(kind) else float(text))


def _code(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    return _changed(
        rng, table, _name(rng, table, seed.codes), rng.choice((0, 1, 2, 3, 4, 5, 7, 8, 10, 6001, -1, -99, 9, 99, 6002))
    )


def _unit(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    return _changed(rng, table, _name(rng, table, seed.units), rng.choice(UNITS))


def _text(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return _changed(
        rng, table, _name(rng, table), rng.choice((*MARKS, "day", "hour", "var", "\x00", "a\nb", "x" * 5000))
    )


def _null(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return _changed(rng, table, _name(rng, table), None)


def _time(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    """Move times, one column or all alike, or put one time of any year in."""
    names = seed.times if rng.random() < 0.5 else (_name(rng, table, seed.times),)
    shift = timedelta(seconds=rng.choice((1, 60, 1800, 3600, -3600, 8 * 3600, 86400, 30 * 86400, 0.001)))
    far = datetime(rng.choice((1, 1600, 1677, 1900, 2262, 2300, 9999)), 1, 1)
    one, row = rng.random() < 0.5, rng.randrange(table.num_rows or 1)
    new = rng.random() < 0.2
    for name in names:
        cells = [
            (far if new else time + shift) if isinstance(time, datetime) and (row == i or not one) else time
            for i, time in enumerate(table[name].to_pylist())
        ]
        table = _cells(table, name, cells)
    return table


def _time_type(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    kinds: list[Callable[[pa.ChunkedArray], pa.ChunkedArray]] = [
        lambda column: column.cast(pa.timestamp("s")),
        lambda column: column.cast(pa.timestamp("ms")),
        lambda column: column.cast(pa.timestamp("us")),
        lambda column: column.cast(pa.timestamp("ns")),
        lambda column: column.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
        lambda column: column.cast(pa.timestamp("us")).cast(pa.timestamp("us", "Asia/Shanghai")),
        lambda column: column.cast(pa.timestamp("us")).cast(pa.timestamp("us", "+08:00")),
        lambda column: column.cast(pa.date32(), safe=False),
        lambda column: column.cast(pa.date64(), safe=False),
        lambda column: column.cast(pa.string()),
        lambda column: column.cast(pa.string()).dictionary_encode(),
        lambda column: column.cast(pa.timestamp("us")).cast(pa.int64()),
        lambda column: column.cast(pa.timestamp("s")).cast(pa.int64()).cast(pa.float64()),
        lambda column: pa.chunked_array([pa.array([rng.choice(TIMES) for _ in range(len(column))])]),
    ]
    name = _name(rng, table, seed.times)
    return table.set_column(table.column_names.index(name), name, rng.choice(kinds)(table[name]))


def _number_type(rng: Random, table: pa.Table, seed: Parquet) -> pa.Table:
    name = _name(rng, table, (*seed.numbers, *seed.codes))
    kind = rng.choice(
        (pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.string(),
         pa.bool_(), pa.decimal128(38, 18), pa.decimal128(10, 2), pa.decimal256(50, 5), pa.null(),
         pa.large_string(), pa.binary())
    )  # fmt: skip
    return table.set_column(table.column_names.index(name), name, _cast(table[name], kind))


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(column))])
    try:
        return column.cast(kind, safe=False)
    except pa.ArrowException:
        return column.cast(pa.float64()).cast(kind, safe=False)


def _text_type(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    name = _name(rng, table)
    column = table[name]
    kind = rng.choice(
        (pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string()), pa.string_view(), pa.list_(pa.string()))
    )
    new = (
        pa.chunked_array([pa.array([[text] for text in column.to_pylist()])])
        if pa.types.is_list(kind)
        else column.cast(kind)
    )
    return table.set_column(table.column_names.index(name), name, new)


def _column_gone(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return table.drop_columns([_name(rng, table)])


def _column_twice(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    one, other = _name(rng, table), _name(rng, table)
    return table.append_column(one, table[other])


def _renamed(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    names = list(table.column_names)
    at = rng.randrange(len(names))
    names[at] = rng.choice((names[at].lower(), names[at].upper(), f" {names[at]}", "x", "", rng.choice(names)))
    return table.rename_columns(names)


def _names_swapped(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    names = list(table.column_names)
    i, j = rng.sample(range(len(names)), 2)
    names[i], names[j] = names[j], names[i]
    return table.rename_columns(names)


def _columns_moved(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return table.select(rng.sample(table.column_names, table.num_columns))


def _rows_moved(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return table.take([rng.randrange(table.num_rows) for _ in range(rng.randrange(1, 2 * table.num_rows))])


def _no_rows(_rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    return table.slice(0, 0)


def _metadata(rng: Random, table: pa.Table, _seed: Parquet) -> pa.Table:
    """What pandas writes beside a table: indexes, and at times nonsense."""
    text = rng.choice((b"", b"{", b'{"index_columns": ["time"], "columns": []}', b"null", b'{"columns": 3}'))
    frame = table.to_pandas().set_index(_name(rng, table))
    return rng.choice((table.replace_schema_metadata({"pandas": text}), pa.Table.from_pandas(frame)))


#: Changes of a table; the likelier ones stand there more than once.
CHANGES: tuple[Callable[[Random, pa.Table, Parquet], pa.Table], ...] = (
    _number, _number, _number, _code, _code, _unit, _unit, _text, _null, _time, _time, _time, _time_type, _time_type,
    _number_type, _number_type, _text_type, _column_gone, _column_twice, _renamed, _names_swapped, _columns_moved,
    _rows_moved, _rows_moved, _no_rows, _metadata,
)  # fmt: skip
