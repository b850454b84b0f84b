"""Pages of documentation taken apart: fenced blocks, shell commands with the output they show, links, things in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = {"bash", "console", "python", "yaml", "text"}
"""bash: commands. console: commands after '$ ', each followed by what it prints ('...' stands for anything). text: not run."""

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A shell command and, in a console block, the lines that it is said to print."""

    text: str
    output: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def commands(self) -> list[Command]:
        """Commands of a shell block, continued lines joined, comments left out."""
        if self.language == "bash":
            joined = self.text.replace("\\\n", " ")
            lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
            return [Command(line) for line in lines if line]
        out: list[Command] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                out.append(Command(line[2:], ()))
            elif out:
                out[-1] = Command(out[-1].text, (*out[-1].output, line))
            else:
                raise AssertionError(f"{self.place}: a console block begins with a command, '$ ...'; found {line!r}")
        return out


@dataclass(frozen=True)
class Table:
    """A table: the title above it, its columns and rows of cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Page:
    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path, path.read_text())

    @property
    def blocks(self) -> list[Block]:
        found = _FENCE.finditer(self.text)
        return [Block(self.path.name, self.text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        """Targets of links that are not web addresses."""
        return [t for t in re.findall(r"\]\(([^)\s]+)\)", self.prose) if "://" not in t]

    @property
    def anchors(self) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", t.lower()).strip().replace(" ", "-") for t in titles}

    @property
    def names(self) -> Iterator[str]:
        """What stands in backticks outside of blocks."""
        yield from names(self.prose)

    @property
    def tables(self) -> list[Table]:
        out, title, lines = [], "", []
        for line in [*self.prose.splitlines(), ""]:
            if line.startswith("|"):
                lines.append(tuple(cell.strip() for cell in line.strip()[1:-1].split("|")))
            elif lines:
                head, rule, *rows = lines
                assert set("".join(rule)) <= set("-| "), f"{self.path.name}: a table without a rule below {head}"
                assert all(len(row) == len(head) for row in rows), f"{self.path.name}: rows of unlike length below {head}"
                out.append(Table(title, head, tuple(rows)))
                lines = []
            if line.startswith("#"):
                title = line.lstrip("# ")
        return out

    @property
    def own_names(self) -> Iterator[str]:
        """As `names`, without those that a table says are another program's: the columns before one that is headed "here"."""
        yield from names(re.sub(r"^\|.*", "", self.prose, flags=re.MULTILINE))
        for table in self.tables:
            for row in table.rows:
                yield from names(" ".join(row[table.columns.index("here") if "here" in table.columns else 0 :]))


def names(text: str) -> list[str]:
    """What stands in backticks in `text`."""
    return re.findall(r"`([^`\n]+)`", text)


def prints(wanted: tuple[str, ...], got: str) -> bool:
    """Whether `got` is what `wanted` shows, line by line and whatever the spaces: '...' in a line is anything, as a line any lines."""
    pattern = ""
    for line in wanted:
        text = re.escape(" ".join(line.split()))
        dots = re.escape("...")
        pattern += r"(?:.*\n)*" if text == dots else text.replace(re.escape(" ") + dots, ".*").replace(dots, ".*") + r"\n"
    return re.fullmatch(pattern, "".join(" ".join(line.split()) + "\n" for line in got.strip().splitlines())) is not None
