"""CSV bytes to an Arrow table, with errors that name the file, the line, the column, what was expected and found."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline.errors import InputError

log = logging.getLogger("aqnet")

#: What a CSV may hold where a value is missing; ``/`` is the mark of the present CNEMC API.
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "/")

Truncated = Literal["error", "keep"]


@dataclass(frozen=True)
class CsvFile:
    """The bytes of one CSV file and the name errors give it."""

    where: str
    data: bytes = field(repr=False)

    def header(self) -> list[str]:
        """Column names of the first line, in order; a byte-order mark is dropped.

        Raises
        ------
        InputError
            When the file is empty or its first line is not UTF-8.
        """
        first = self.data.split(b"\n", 1)[0]
        try:
            names = next(csv.reader([first.decode("utf-8-sig").rstrip("\r")]), [])
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}, line 1: expected a UTF-8 header; found bytes that are not") from error
        if not names:
            raise InputError(f"{self.where}: expected a CSV header in line 1; found an empty file or line")
        return [name.strip() for name in names]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number (the header is line 1) and cells of each whole row; blank and broken rows are passed over."""
        rows = csv.reader(io.StringIO(self.data.decode("utf-8-sig", errors="replace"), newline=""))
        columns = len(next(rows))
        yield from ((rows.line_num, cells) for cells in rows if len(cells) == columns)

    def line_at(self, row: int) -> int:
        """Line number of row `row` (from 0) of what `read` returns."""
        return next(islice(self.rows(), row, None))[0]

    def read(self, types: Mapping[str, pa.DataType], truncated: Truncated = "error") -> pa.Table:
        """Read the columns named in `types`, each of its type; nulls where a cell is missing.

        Parameters
        ----------
        types : column name -> Arrow type; a name that is not in the header is passed over.
        truncated : ``error`` refuses a row that does not have as many columns as the header, ``keep`` leaves such
            rows out with a warning.

        Raises
        ------
        InputError
            Naming the line of a broken row, or the line and column of a cell that is not of its type.
        """
        names = self.header()
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        unique = [name if first[name] == i else f"{name}#{i}" for i, name in enumerate(names)]
        broken: list[pacsv.InvalidRow] = []
        try:
            table = pacsv.read_csv(
                pa.BufferReader(self.data.partition(b"\n")[2] or b"\n"),
                # One thread: only then does Arrow say which row is broken, and in which order.
                read_options=pacsv.ReadOptions(column_names=unique, use_threads=False, block_size=1 << 26),
                parse_options=pacsv.ParseOptions(invalid_row_handler=_skip_into(broken)),
                convert_options=_conversion({name: types[name] for name in unique if name in types}),
            )
        except pa.ArrowInvalid as error:
            raise self._blame(types, broken, error) from error
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
        return next((n for n, text in enumerate(lines[1:], start=2) if text == row.text), row.number + 1)

    def _blame(self, types: Mapping[str, pa.DataType], broken: list[pacsv.InvalidRow], error: Exception) -> InputError:
        """Return the error that names the first cell which is not of its declared type."""
        names = self.header()
        for line, cells in self.rows():
            for column, text in zip(names, cells, strict=True):
                if column in types and text not in MISSING and not _reads_as(text, types[column]):
                    expected = "a whole number" if pa.types.is_integer(types[column]) else "a number"
                    return InputError(
                        f"{self.where}, line {line}, column '{column}': expected {expected}; found '{text}'"
                    )
        reason = str(error).splitlines()[0]
        return InputError(
            f"{self.where}: expected CSV rows under the header; found {reason} ({len(broken)} broken rows)"
        )


def _conversion(types: Mapping[str, pa.DataType]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(
        column_types=types, include_columns=list(types), null_values=list(MISSING), strings_can_be_null=True
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
