"""Leaderboards as LaTeX tables for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ctxbench.tables import Table, printable, prose

PACKAGES = r"""% Needs \usepackage{booktabs}; text that is not Latin needs LuaLaTeX or XeLaTeX and a font that has it.
"""
# A bracket or a star after the end of a line would be an argument of it; two hyphens would be a dash.
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "-{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "…": r"\ldots{}",
    "\ufffd": "?",
} | {mark: f"\\{mark}" for mark in "{}#$%&_"}
NOT_LATEX = re.compile("|".join("-(?=-)" if mark == "-" else re.escape(mark) for mark in LATEX))


def latex(tables: Iterable[Table[Any]]) -> str:
    """The tables as LaTeX to be put into a document; a comment says what they need."""
    found = [latex_table(table, number) for number, table in enumerate(tables, 1)]
    return "\n".join([PACKAGES, *found]) if found else PACKAGES + "% no records: this run is empty\n"


def latex_table(table: Table[Any], number: int) -> str:
    """A booktabs table with its title as caption and its notes below."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(table.title)}}}"]
    lines.append(rf"\label{{tab:ctxbench-{number}}}")
    lines.append(rf"\begin{{tabular}}{{{''.join('r' if it.numeric else 'l' for it in table.columns)}}}")
    lines += [r"\toprule", latex_line(map(escape_latex, table.header)), r"\midrule"]
    lines += map(latex_line, table.formatted(escape_latex, r"\textbf{{{}}}"))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes := [*([table.verdict] if table.verdict else []), *table.notes]:
        lines.append(r"\par\smallskip\footnotesize")
        lines += [prose(note, escape_latex, teletype) + r"\par" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape_latex(text: str) -> str:
    """One line of text that LaTeX prints as it is."""
    return NOT_LATEX.sub(lambda mark: LATEX[mark[0]], printable(text))


def teletype(name: str) -> str:
    return rf"\texttt{{{escape_latex(name)}}}"
