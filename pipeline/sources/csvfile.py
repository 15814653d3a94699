"""CSV bytes to an Arrow table, with errors that name the file, the line, the column, what was expected and found."""

from __future__ import annotations

import csv
import io
import logging
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
            names = next(csv.reader([first.decode("utf-8-sig").rstrip("\r")], delimiter=self.delimiter), [])
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
        text = io.StringIO(self.data.decode("utf-8-sig", errors="replace"), newline="")
        rows, columns = csv.reader(text, delimiter=self.delimiter), len(self.header())
        try:
            if self.names is None:
                next(rows, None)
            yield from ((rows.line_num, cells) for cells in rows if len(cells) == columns)
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
                parse_options=pacsv.ParseOptions(delimiter=self.delimiter, invalid_row_handler=_skip_into(broken)),
                convert_options=_conversion({name: types[name] for name in unique if name in types}, missing),
            )
        except pa.ArrowInvalid as error:
            raise self._blame(types, broken, error, missing) from error
        self._report(broken, truncated)
        return table

    def _report(self, broken: list[pacsv.InvalidRow], truncated: Truncated) -> None:
        if not broken:
            return
        row = broken[0]
        line = self._line_of_row(row)
        found = f"{self.where}, line {line}: expected {row.expected_columns} columns; found {row.actual_columns}"
        if truncated == "error":
            raise InputError(f"{found}; set truncated = 'keep' to use the whole rows")
        log.warning("%s; left out this and %d other broken rows", found, len(broken) - 1)

    def _line_of_row(self, row: pacsv.InvalidRow) -> int:
        lines = self.data.decode("utf-8-sig", errors="replace").splitlines()
        first = 0 if self.names is not None else 1
        found = (n for n, text in enumerate(lines[first:], start=first + 1) if text == row.text)
        return next(found, (row.number or 0) + first)

    def _blame(
        self,
        types: Mapping[str, pa.DataType],
        broken: list[pacsv.InvalidRow],
        error: Exception,
        missing: Sequence[str],
    ) -> InputError:
        """Return the error that names the first cell which is not of its declared type."""
        names = self.header()
        for line, cells in self.rows():
            for column, text in zip(names, cells, strict=True):
                if column in types and text not in missing and not _reads_as(text, types[column]):
                    expected = "a whole number" if pa.types.is_integer(types[column]) else "a number"
                    return InputError(
                        f"{self.where}, line {line}, column '{column}': expected {expected}; found '{text}'"
                    )
        reason = str(error).splitlines()[0]
        return InputError(
            f"{self.where}: expected CSV rows under the header; found {reason} ({len(broken)} broken rows)"
        )


def _conversion(types: Mapping[str, pa.DataType], missing: Sequence[str]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=list(missing), strings_can_be_null=True
    )


def _skip_into(broken: list[pacsv.InvalidRow]) -> Callable[[pacsv.InvalidRow], str]:
    def skip(row: pacsv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    return skip


def _reads_as(text: str, kind: pa.DataType) -> bool:
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return True
    try:
        int(text) if pa.types.is_integer(kind) else float(text)
    except ValueError:
        return False
    return True
