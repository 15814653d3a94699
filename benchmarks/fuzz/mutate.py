"""Seeded mutations of delimited text: of its cells, rows and columns, then of its bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.fuzz.pools import MARKS, NUMBERS, TIME_CHANGES, UNITS

#: Rows of cells; the first is the header where the layout has one.
Grid = list[list[str]]


@dataclass(frozen=True)
class Text:
    """A valid delimited file: its bytes, and which columns hold times, units and numbers."""

    data: bytes
    delimiter: str
    header: bool
    times: tuple[int, ...]
    units: tuple[int, ...]
    numbers: tuple[int, ...]
    quoted: bool = False

    def grid(self) -> Grid:
        """The cells."""
        return list(csv.reader(io.StringIO(self.data.decode()), delimiter=self.delimiter))

    def text(self, grid: Grid) -> bytes:
        """Serialise cells as this file does; cells that hold the delimiter are quoted."""
        out = io.StringIO()
        quoting = csv.QUOTE_ALL if self.quoted else csv.QUOTE_MINIMAL
        csv.writer(out, delimiter=self.delimiter, quoting=quoting, lineterminator="\n").writerows(grid)
        return out.getvalue().encode()


def mutated(seed: Text, others: Sequence[bytes], rng: Random) -> bytes:
    """One damaged copy: up to three changes of cells, then up to two of bytes, at least one of either."""
    cells, raw = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 1), (0, 2), (1, 1)))
    data = seed.data
    if cells:
        grid = seed.grid()
        for _ in range(cells):
            rng.choice(CELL_CHANGES)(rng, grid, seed)
        data = seed.text(grid)
    for _ in range(raw):
        data = rng.choice(BYTE_CHANGES)(rng, data, others)
    return data


def _row(rng: Random, grid: Grid, seed: Text) -> list[str]:
    return grid[rng.randrange(min(seed.header, len(grid) - 1), len(grid))] if grid else [""]


def _body(grid: Grid, seed: Text) -> Grid:
    return grid[1:] if seed.header else grid


def _put(rng: Random, grid: Grid, seed: Text, columns: Sequence[int], change: Callable[[str], str]) -> None:
    """Change one column in one row, or in every row to the same."""
    if not columns or not grid:
        return
    column = rng.choice(columns)
    if rng.random() < 0.3:
        state = rng.getstate()
        for row in _body(grid, seed):
            rng.setstate(state)
            if column < len(row):
                row[column] = change(row[column])
        return
    row = _row(rng, grid, seed)
    if column < len(row):
        row[column] = change(row[column])


def _number(rng: Random, grid: Grid, seed: Text) -> None:
    _put(rng, grid, seed, seed.numbers, lambda _: rng.choice(NUMBERS))


def _mark(rng: Random, grid: Grid, seed: Text) -> None:
    _put(rng, grid, seed, range(len(grid[0]) if grid else 0), lambda _: rng.choice(MARKS))


def _unit(rng: Random, grid: Grid, seed: Text) -> None:
    _put(rng, grid, seed, seed.units or seed.numbers, lambda _: rng.choice(UNITS))


def _time(rng: Random, grid: Grid, seed: Text) -> None:
    _put(rng, grid, seed, seed.times, lambda text: rng.choice(TIME_CHANGES)(rng, text))


def _cell_of_another_column(rng: Random, grid: Grid, seed: Text) -> None:
    row = _row(rng, grid, seed)
    if len(row) > 1:
        i, j = rng.sample(range(len(row)), 2)
        row[i], row[j] = row[j], row[i]


def _cell_of_another_row(rng: Random, grid: Grid, seed: Text) -> None:
    one, other = _row(rng, grid, seed), _row(rng, grid, seed)
    if shared := min(len(one), len(other)):
        i = rng.randrange(shared)
        one[i], other[i] = other[i], one[i]


def _cell_added_or_gone(rng: Random, grid: Grid, seed: Text) -> None:
    row = _row(rng, grid, seed)
    at = rng.randrange(len(row) + 1)
    if rng.random() < 0.5:
        row.insert(at, rng.choice((*NUMBERS, *MARKS)))
    else:
        del row[at : at + 1]


def _letter(rng: Random, grid: Grid, seed: Text) -> None:
    row = _row(rng, grid, seed)
    if row:
        i = rng.randrange(len(row))
        at = rng.randrange(len(row[i]) + 1)
        row[i] = (
            row[i][:at]
            + rng.choice("0123456789.-+:eE ,;|'\"/\\µ³\u00a0\u200b\u0660\n\r\t")
            + row[i][at + rng.randrange(2) :]
        )


def _row_twice(rng: Random, grid: Grid, seed: Text) -> None:
    row = list(_row(rng, grid, seed))
    if row and seed.numbers and rng.random() < 0.7:
        at = rng.choice(seed.numbers)
        if at < len(row):
            row[at] = rng.choice(("1", "77.5", "", "NA"))
    grid.insert(rng.randrange(len(grid) + 1) if rng.random() < 0.1 else len(grid), row)


def _row_gone(rng: Random, grid: Grid, seed: Text) -> None:
    del grid[rng.randrange(len(grid) or 1) :][:1]
    if grid:
        grid.pop(rng.randrange(len(grid)))


def _rows_swapped(rng: Random, grid: Grid, seed: Text) -> None:
    first = 0 if rng.random() < 0.2 else int(seed.header)
    if len(grid) > first + 1:
        i, j = rng.sample(range(first, len(grid)), 2)
        grid[i], grid[j] = grid[j], grid[i]


def _column_gone(rng: Random, grid: Grid, seed: Text) -> None:
    at = rng.randrange(len(grid[0]) if grid else 1)
    for row in grid:
        del row[at : at + 1]


def _column_twice(rng: Random, grid: Grid, seed: Text) -> None:
    columns = len(grid[0]) if grid else 1
    at, to = rng.randrange(columns or 1), rng.randrange(columns + 1)
    for n, row in enumerate(grid):
        if at < len(row):
            row.insert(to, row[at] if n == 0 or rng.random() < 0.5 else rng.choice(NUMBERS[:3]))


def _columns_moved(rng: Random, grid: Grid, seed: Text) -> None:
    columns = len(grid[0]) if grid else 0
    order = rng.sample(range(columns), columns)
    for n, row in enumerate(grid):
        if len(row) == columns:
            grid[n] = [row[i] for i in order]


def _header_moved(rng: Random, grid: Grid, seed: Text) -> None:
    if grid and len(grid[0]) > 1:
        i, j = rng.sample(range(len(grid[0])), 2)
        grid[0][i], grid[0][j] = grid[0][j], grid[0][i]


def _header_renamed(rng: Random, grid: Grid, seed: Text) -> None:
    if grid and grid[0]:
        i = rng.randrange(len(grid[0]))
        name = grid[0][i]
        pool = (
            name.upper(),
            name.lower(),
            f" {name}",
            f"{name} ",
            f'"{name}"',
            f"\ufeff{name}",
            rng.choice(grid[0]),
            "",
            "x",
        )
        grid[0][i] = rng.choice((*pool, name[:-1], f"{name}_24h", "pm10", "pm25", "value", "units", "time"))


def _header_gone(rng: Random, grid: Grid, seed: Text) -> None:
    del grid[:1]


#: Changes of cells, in place; the likelier ones stand there more than once.
CELL_CHANGES: tuple[Callable[[Random, Grid, Text], None], ...] = (
    _number, _number, _number, _mark, _mark, _unit, _unit, _unit, _time, _time, _time, _time, _time,
    _cell_of_another_column, _cell_of_another_row, _cell_added_or_gone, _letter, _letter, _row_twice, _row_twice,
    _row_gone, _rows_swapped, _column_gone, _column_twice, _columns_moved, _header_moved, _header_renamed,
    _header_renamed, _header_gone,
)  # fmt: skip


def _flip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x00"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _delete(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 1, 1, 2, 5, 40)) :]


PIECES = (
    b"\x00", b'"', b'""', b"'", b"\n", b"\r", b"\r\n", b",", b"|", b";", b"\t", b"\xef\xbb\xbf", b"\xff", b"\xc2",
    b"\xb5", b"\x1a", b"9", b"-", b".", b" ", b"\x85", b"\x0c", b"\x1c", "\u2028".encode(),
)  # fmt: skip


def _insert(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.randbytes(1), rng.randbytes(4), *PIECES)) + data[at:]


def _truncate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _head_gone(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[rng.randrange(min(len(data), 300) + 1) :]


def _chunk_twice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    one, other = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:other] + data[one:other] + data[other:]


def _ends(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    end = rng.choice((b"\r\n", b"\r", b"\n\r", b"\n\n", b"\r\r\n", b"\x00\n", b"", b" \n", b",\n"))
    if rng.random() < 0.5:
        return data.replace(b"\n", end)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    return b"\n".join(lines[:at]) + (end if at else b"") + b"\n".join(lines[at:])


def _delimiter(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    old = max((b",", b"|", b";", b"\t"), key=data.count)
    return data.replace(old, rng.choice((b";", b"\t", b"|", b",", b", ", b",,", b" ")))


def _encoding(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    name = rng.choice(("latin-1", "utf-16", "utf-16-le", "utf-8-sig", "utf-32", "gb18030", "cp1252"))
    return data.decode(errors="replace").encode(name, errors="replace")


def _mojibake(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data.decode("latin-1").encode()


def _another(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    if rng.random() < 0.5:
        other = other.partition(b"\n")[2]
    return rng.choice((data + other, data.rstrip(b"\n") + other, other + data))


def _long(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at]
        + rng.choice((b"9", b"a", b",", b'"', b"\n", b"0", b" ")) * rng.choice((300, 3000, 140_000))
        + data[at:]
    )


#: Changes of bytes.
BYTE_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _flip, _delete, _delete, _delete, _insert, _insert, _insert, _insert, _truncate, _truncate,
    _head_gone, _chunk_twice, _ends, _ends, _delimiter, _encoding, _mojibake, _another, _another, _long,
)  # fmt: skip
