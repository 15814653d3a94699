"""CSV bytes to an Arrow table, with errors that name the file, the line, the column, what was expected and found."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from pipeline.errors import InputError

log = logging.getLogger("aqnet")

#: What a CSV may hold where a value is missing; ``/`` is the mark of the present CNEMC API.
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "/")

Truncated = Literal["error", "keep"]

#: What Arrow takes for a number: ASCII digits, blanks around them. ``int`` and ``float`` take more, such as ``1_000``.
_WHOLE = re.compile(r"[ \t]*-?0*[0-9]{1,20}[ \t]*")
_DECIMAL = re.compile(r"[ \t]*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")

#: The longest piece of a file that an error quotes.
_SHOWN = 60


def shown(text: object) -> str:
    """A piece of a file as an error may quote it: on one line, without control characters, not too long."""
    whole = str(text)
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:_SHOWN])
    return "".join(printable) + ("..." if len(whole) > _SHOWN else "")


@dataclass(frozen=True)
class CsvFile:
    """The bytes of one CSV file and the name errors give it; `names` are its columns where line 1 is data."""

    where: str
    data: bytes = field(repr=False)
    delimiter: str = ","
    names: tuple[str, ...] | None = None

    def header(self) -> list[str]:
        """Column names of the first line (or `names`), in order; a byte-order mark is dropped.

        Raises
        ------
        InputError
            When the file is empty or its first line is not UTF-8.
        """
        if self.names is not None:
            return list(self.names)
        first = self.data.split(b"\n", 1)[0]
        try:
            text = first.decode("utf-8-sig").rstrip("\r")
            names = next(csv.reader([text], delimiter=self.delimiter, strict=True), [])  # strict: no open quote
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}, line 1: expected a UTF-8 header; found bytes that are not") from error
        except csv.Error as error:
            raise InputError(f"{self.where}, line 1: expected a CSV header; found {error}") from error
        if not names:
            raise InputError(f"{self.where}: expected a CSV header in line 1; found an empty file or line")
        return [name.strip() for name in names]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number (the first line is 1) and cells of each whole row; blank and broken rows are passed over.

        Raises
        ------
        InputError
            Where the text cannot be cut into cells, naming the line.
        """
        columns = len(self.header())
        yield from ((line, cells) for line, cells in self._cells() if len(cells) == columns)

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of each row under the header, blank lines excepted."""
        text = io.StringIO(self.data.decode("utf-8-sig", errors="replace"), newline="")
        rows = csv.reader(text, delimiter=self.delimiter)
        try:
            if self.names is None:
                next(rows, None)
            yield from ((rows.line_num, cells) for cells in rows if cells)
        except csv.Error as error:
            raise InputError(f"{self.where}, line {rows.line_num}: expected CSV cells; found {error}") from error

    def line_at(self, row: int) -> int:
        """Line number of row `row` (from 0) of what `read` returns."""
        return next(islice(self.rows(), row, None))[0]

    def lines(self, rows: int) -> NDArray[np.int32]:
        """Line number of each of the `rows` rows that `read` returned; shape (rows,)."""
        first = 1 if self.names is not None else 2
        physical = self.data.count(b"\n") + (not self.data.endswith(b"\n"))
        bare = self.data.count(b"\r") - self.data.count(b"\r\n")  # Arrow ends a row at these, too
        if physical == rows + first - 1 and not bare:  # no blank, broken or quoted line: row and line go together
            return np.arange(first, first + rows, dtype="int32")
        found = np.fromiter((line for line, _ in islice(self.rows(), rows)), dtype="int32")
        if len(found) != rows:
            raise InputError(f"{self.where}: expected {rows} rows as the table has; found {len(found)} lines for them")
        return found

    def read(
        self, types: Mapping[str, pa.DataType], truncated: Truncated = "error", missing: Sequence[str] = MISSING
    ) -> pa.Table:
        """Read the columns named in `types`, each of its type; nulls where a cell is missing.

        Parameters
        ----------
        types : column name -> Arrow type; a name that is not in the header is passed over.
        truncated : ``error`` refuses a row that does not have as many columns as the header, ``keep`` leaves such
            rows out with a warning.
        missing : cells that stand for a missing value.

        Raises
        ------
        InputError
            Naming the line of a broken row, or the line and column of a cell that is not of its type.
        """
        names = self.header()
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        unique = [name if first[name] == i else f"{name}#{i}" for i, name in enumerate(names)]
        broken: list[pacsv.InvalidRow] = []
        body = self.data if self.names is not None else self.data.partition(b"\n")[2]
        try:
            table = pacsv.read_csv(
                pa.BufferReader(body or b"\n"),
                # One thread: only then does Arrow say which row is broken, and in which order.
                read_options=pacsv.ReadOptions(column_names=unique, use_threads=False, block_size=1 << 26),
                parse_options=pacsv.ParseOptions(
                    delimiter=self.delimiter,
                    # Arrow hands broken rows over as text, and prints a traceback where one is not UTF-8.
                    invalid_row_handler=_skip_into(broken) if _is_utf8(body) else None,
                ),
                convert_options=_conversion({name: types[name] for name in unique if name in types}, missing),
            )
        except pa.ArrowInvalid as error:
            raise self._blame(types, error, missing) from error
        self._report(broken, truncated)
        hexadecimal = (b"0x" in body or b"0X" in body) and any(map(pa.types.is_integer, table.schema.types))
        if _holds_infinity(table) or hexadecimal:  # Arrow takes 0x10 for a whole number
            self._refuse_cells(types, missing)
        return table

    def _report(self, broken: list[pacsv.InvalidRow], truncated: Truncated) -> None:
        if not broken:
            return
        found = self._broken_row() or f"{self.where}: expected whole CSV rows; found {shown(broken[0].text)}"
        if truncated == "error":
            raise InputError(f"{found}; set truncated = 'keep' to use the whole rows")
        log.warning("%s; left out this and %d other broken rows", found, len(broken) - 1)

    def _broken_row(self) -> str | None:
        """What is wrong with the first row that does not have as many cells as the header."""
        columns = len(self.header())
        for line, cells in self._cells():
            if len(cells) != columns:
                return f"{self.where}, line {line}: expected {columns} columns; found {len(cells)}"
        return None

    def _blame(self, types: Mapping[str, pa.DataType], error: Exception, missing: Sequence[str]) -> InputError:
        """Return the error that names the first cell which is not of its declared type."""
        self._refuse_cells(types, missing)
        reason = self._broken_row() or f"{self.where}: expected CSV rows; found {shown(str(error).splitlines()[0])}"
        return InputError(reason)

    def _refuse_cells(self, types: Mapping[str, pa.DataType], missing: Sequence[str]) -> None:
        """Raise for the first cell that is not of its declared type, a number beyond its range among them."""
        names = self.header()
        checks = [(i, types[name]) for i, name in enumerate(names) if name in types and name not in names[:i]]
        for line, cells in self.rows():
            for i, kind in checks:
                if cells[i] not in missing and (expected := _not_of(cells[i], kind)):
                    where = f"{self.where}, line {line}, column '{shown(names[i])}'"
                    raise InputError(f"{where}: expected {expected}; found '{shown(cells[i])}'")


def _conversion(types: Mapping[str, pa.DataType], missing: Sequence[str]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=list(missing), strings_can_be_null=True
    )


def _skip_into(broken: list[pacsv.InvalidRow]) -> Callable[[pacsv.InvalidRow], str]:
    def skip(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    return skip


def _is_utf8(data: bytes) -> bool:
    """Whether all of it is; nothing is copied."""
    size = pa.array([0, len(data)], pa.int64()).buffers()[1]
    try:
        pa.LargeStringArray.from_buffers(1, size, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def matrix(table: pa.Table) -> NDArray[np.floating]:
    """The columns of a table, floating point all, as one array of shape (rows, columns); NaN for null."""
    if not table.num_rows or not table.num_columns:
        return np.empty((table.num_rows, table.num_columns), dtype="float32")
    return table.combine_chunks().to_batches()[0].to_tensor(null_to_nan=True, row_major=False).to_numpy()


def _holds_infinity(table: pa.Table) -> bool:
    floating = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _floating(kind)]
    return bool(np.isinf(matrix(table.select(floating))).any())


def _floating(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind)


def _not_of(text: str, kind: pa.DataType) -> str | None:
    """What a cell of type `kind` should be, where `text` is not it; None where it is."""
    if pa.types.is_integer(kind):
        low, high = -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1)
        return None if _WHOLE.fullmatch(text) and low <= int(text) < high else "a whole number"
    if _floating(kind):
        if not _DECIMAL.fullmatch(text):
            return "a number"
        high = float(np.finfo(kind.to_pandas_dtype()).max)
        return None if abs(float(text)) <= high else f"a number up to {high:.3g}"
    return "UTF-8 text" if "\ufffd" in text else None
