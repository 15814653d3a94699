"""The documentation is true: its commands run, its output has the shape shown, its links and tables are right.

Comments before a block of a page steer this: ``<!-- not run: reason -->``, ``<!-- needs: PROGRAM or PATH -->``,
``<!-- exit: CODE -->`` and ``<!-- file: NAME -->`` (the block is the content of that file). A ``text`` block after a
block that ran is its output: every line of it must be in the real one, figures aside.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from pipeline import cli
from pipeline.config import ENV_PREFIX, RunConfig
from pipeline.sources import CONVENTIONS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial" / "first-run.md"
OWN_DATA = DOCS / "how-to" / "run-on-your-own-observations.md"

#: Pages whose commands run; the first two make what the others read.
RUN = [
    TUTORIAL,
    OWN_DATA,
    *sorted({*DOCS.glob("how-to/*.md")} - {OWN_DATA}),
    DOCS / "reference" / "command-line.md",
    DOCS / "reference" / "configuration.md",
]
MADE_BY = {page: [TUTORIAL, OWN_DATA][: index if index < 2 else 2] for index, page in enumerate(RUN)}

PRODUCT = "tutorial/products/pm25_shanxi_aqnet_interim_v0.1.0_hourly_20191201-20191201.nc"

#: Context that subcommands take `-h` from.
GROUP = click.Context(cli.aqnet, **cli.aqnet.context_settings)

FENCE = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page and what the comments before it say."""

    page: Path
    line: int
    language: str
    text: str
    about: tuple[tuple[str, str], ...]
    shown: str = ""

    def says(self, key: str) -> str | None:
        return dict(self.about).get(key)


def blocks(page: Path) -> list[Block]:
    """Blocks of a page in order; a ``text`` block joins the one before it as what it shows."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        comments, language, body = match.groups()
        if language == "text" and found:
            found[-1] = Block(**(vars(found[-1]) | {"shown": body}))
            continue
        about = tuple(re.findall(r"<!-- ([a-z ]+): (.*?) -->", comments))
        found.append(Block(page, text[: match.start(2)].count("\n") + 1, language, body, about))
    return found


BLOCKS = {page: blocks(page) for page in RUN}
STEPS = [
    block
    for page in RUN
    for block in BLOCKS[page]
    if block.language in ("bash", "python") and not block.says("not run")
]
NOT_RUN = [block for page in RUN for block in BLOCKS[page] if block.says("not run")]


def name_of(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.page.stem}:{value.line}"
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


# ---- running ----


@dataclass
class Workplace:
    """A folder to follow the pages in; `aqnet` and Python run in this process, everything else in a shell."""

    folder: Path
    output: dict[Block, str] = field(default_factory=dict)
    names: dict[Path, dict[str, object]] = field(default_factory=dict)

    def follow(self, step: Block) -> str:
        """Run what comes before a step, where that has not run yet, and the step; return what it printed."""
        before = [block for page in MADE_BY[step.page] for block in BLOCKS[page]]
        own = BLOCKS[step.page]
        for block in [*before, *own[: own.index(step) + 1]]:
            if block not in self.output and not block.says("not run") and not lacking(block):
                self.output[block] = self._run(block)
        return self.output[step]

    def _run(self, block: Block) -> str:
        file = block.says("file")
        if file:
            (self.folder / file).write_text(block.text)
        with contextlib.chdir(self.folder):
            if block.language == "python":
                return self._python(block)
            return self._shell(block) if block.language == "bash" else ""

    def _python(self, block: Block) -> str:
        code = compile("\n" * block.line + block.text, str(block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names.setdefault(block.page, {"__name__": block.page.stem}))
        return printed.getvalue()

    def _shell(self, block: Block) -> str:
        expected, printed = int(block.says("exit") or 0), []
        for command in commands(block):
            code, text = aqnet(command) if is_aqnet(command) else shell(command)
            assert code == expected, f"{name_of(block)}: `{command}` gave {code}, not {expected}:\n{text}"
            printed.append(text)
        return "".join(printed)


def commands(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def is_aqnet(command: str) -> bool:
    return bool(re.fullmatch(r"(\w+=(\"[^\"]*\"|\S*) )*aqnet [^|<>;&$()]*", command))


def aqnet(command: str) -> tuple[int, str]:
    words = shlex.split(command)
    first = words.index("aqnet")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for word in words[:first]:
            patch.setenv(*word.split("=", 1))
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = cli.run_command(words[first + 1 :])
    return code, printed.getvalue()


def shell(command: str) -> tuple[int, str]:
    found = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"FILE": PRODUCT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return found.returncode, found.stdout


def lacking(block: Block) -> str | None:
    """What a block needs and is not here."""
    need = block.says("needs")
    if need is None:
        return None
    here = (ROOT / need).exists() if "/" in need else shutil.which(need)
    return None if here else need


def masked(line: str) -> str:
    """A line without its figures, and with single spaces."""
    return " ".join(re.sub(r"-?\d+(\.\d+)?", "#", line).split())


@pytest.fixture(scope="module")
def workplace(prefect_harness: None, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """An empty folder beside ``shared`` as a checkout is, with the checkout's weights and configurations in it."""
    folder = tmp_path_factory.mktemp("docs") / "checkout"
    folder.mkdir()
    for name in ("configs", "model"):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    return Workplace(folder)


@pytest.mark.parametrize("step", STEPS, ids=name_of)
def test_a_command_runs_and_prints_what_is_shown(workplace: Workplace, step: Block) -> None:
    if need := lacking(step):
        pytest.skip(f"needs {need}, which is not here")
    printed = workplace.follow(step)
    real = {masked(line) for line in printed.splitlines()}
    for line in filter(None, map(str.strip, step.shown.splitlines())):
        assert line == "..." or masked(line) in real, f"{name_of(step)} shows\n{line}\nbut prints\n{printed}"


@pytest.mark.parametrize("block", NOT_RUN, ids=name_of)
def test_a_command_that_is_not_run_has_a_reason_and_exists(block: Block) -> None:
    assert len(block.says("not run") or "") > 10
    for command in commands(block):
        words = shlex.split(command)
        if words[0] == "aqnet":
            cli.aqnet.commands[words[1]].make_context(words[1], words[2:], parent=GROUP)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_block_is_closed_and_names_its_language(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_toml_on_a_page_has_keys_of_a_run(page: Path) -> None:
    for block in BLOCKS[page]:
        if block.language == "toml" and block.says("file") != "pyproject.toml":  # a plug-in's
            assert set(tomllib.loads(block.text)) <= set(RunConfig.model_fields)


def test_the_example_on_the_configuration_page_is_the_file() -> None:
    shown = [block for block in BLOCKS[DOCS / "reference" / "configuration.md"] if block.language == "toml"]
    example = tomllib.loads((ROOT / "configs" / "example.toml").read_text())
    assert example in [tomllib.loads(block.text) for block in shown]


# ---- links ----

LINKED = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    prose = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert there == ROOT or ROOT in there.parents, f"{name_of(page)} links out of the project: {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(page)} links to {target}: no such heading"


def test_the_index_names_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in LINK.findall(index.read_text())}
    pages = {page for page in DOCS.glob("*/*.md") if page.parent.name != "adr"}
    assert sorted(map(name_of, pages - linked)) == []


# ---- reference tables ----


def rows(text: str) -> list[list[str]]:
    """Cells of every table row, headings and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_configuration_page_has_every_field() -> None:
    table = rows((DOCS / "reference" / "configuration.md").read_text())
    assert [row[0] for row in table] == [f"`{name}`" for name in RunConfig.model_fields]
    options = {option for parameter in cli.aqnet.commands["run"].params for option in parameter.opts}
    for (name, about), row in zip(RunConfig.model_fields.items(), table, strict=True):
        option = f"`--{name}`" if f"--{name}" in options else "-"
        made = {"version": "the package's"}.get(name, "none" if about.default is None else f"`{about.default}`")
        default = "required" if about.is_required() else made
        assert row[1:4] == [f"`{ENV_PREFIX}{name.upper()}`", option, default], name


def expected_options(command: click.Command) -> dict[str, tuple[bool, str | None]]:
    """What stands in the first column -> whether it is required, and the default that click shows."""
    context = click.Context(command, parent=GROUP)
    found: dict[str, tuple[bool, str | None]] = {}
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            default = parameter.default if parameter.show_default else None
            words = " ".join(map(str, default)) if isinstance(default, tuple) else default
            label = ", ".join(f"`{name}`" for name in parameter.opts)
            found[label] = (parameter.required, None if words is None else f"`{words}`")
        else:
            found[f"`{parameter.metavar}`"] = (parameter.required, None)
    return found


def test_the_command_line_page_has_every_command_and_option() -> None:
    text = (DOCS / "reference" / "command-line.md").read_text()
    sections = dict(re.findall(r"^## (aqnet.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    programs = {"aqnet": cli.aqnet} | {f"aqnet {name}": found for name, found in cli.aqnet.commands.items()}
    assert set(sections) == set(programs)
    for name, command in programs.items():
        table, expected = {row[0]: row for row in rows(sections[name])}, expected_options(command)
        assert set(table) == set(expected), name
        for option, (required, default) in expected.items():
            shown = table[option][2]
            assert (shown == "required") == required, f"{name} {option}"
            assert default is None or shown == default, f"{name} {option}"


def test_the_sources_page_has_every_convention() -> None:
    """The table on the page, rebuilt from `CONVENTIONS`."""
    table = rows((DOCS / "reference" / "sources.md").read_text())
    found = {cells[0].strip("`"): cells[1:] for cells in table if len(cells) == 6}
    for name, convention in CONVENTIONS.items():
        zone = "each" if convention.zone == "each" else f"{convention.zone:g}"
        celsius = "-" if convention.celsius is None else f"{convention.celsius:g} degrees C"
        missing = " ".join(f"`{mark}`" if mark else "empty" for mark in convention.missing) or "-"
        assert found[name][:2] + found[name][3:] == [zone, convention.label, celsius, missing], name
        units = convention.units
        assert found[name][2] == ("each" if units == "each" else found[name][2])
        if units != "each":
            assert ("CO mg m-3" in found[name][2]) == (units.get("co") == "mg m-3"), name
    assert set(found) == set(CONVENTIONS)
