"""The report of a comparison: a table in Markdown, LaTeX and JSON that gives the source of each number."""
import itertools
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import yaml

from mmlk._text import markdown_table
from mmlk.analysis.palette import LABEL, Look, Point, add_panels, looks, name_points, rows_height, wrapped
from mmlk.weights.catalog import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EMPTY = '–'
SIGNIFICANT = 0.05
INTERVALS = (
    "p-values are corrected by Holm's method for the {number} of each accuracy; from {level} on, a difference is "
    'called not distinguishable. Over images: the interval covers other images of the same source. Over seeds: it '
    'covers trainings with other seeds. It never covers other training data, schedules or settings')
_ESCAPED = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}',
            '>': r'\textgreater{}', '|': r'\textbar{}', '–': '--', '−': '$-$', '×': r'$\times$', '±': r'$\pm$',
            **{letter: f'\\{letter}' for letter in '&%$#_{}'}}


@dataclass(frozen=True)
class Cell:
    """A number in the table.

    Args:
        values: One value, or one for each seed.
        origin: 'published', 'counted here', 'measured here', 'tested here' or 'trained here'.
        detail: The exact source.
    """
    values: Tuple[float, ...]
    origin: str
    detail: str

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the values (divisor n - 1); 0 for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def source(self) -> str:
        """``origin`` and ``detail`` in one text."""
        return f'{self.origin}: {self.detail}'

    def to_dict(self) -> dict:
        """The contents for a JSON file, in the units of the values."""
        return dict(mean=self.mean, deviation=self.deviation if len(self.values) > 1 else None,
                    values=list(self.values), origin=self.origin, detail=self.detail)


class Column(NamedTuple):
    """A column of the table.

    Args:
        title: Title, with the unit.
        scale: Values are divided by this number for display.
        digits: Number of digits after the decimal point.
    """
    title: str
    digits: int = 1
    scale: float = 1.0

    def number(self, value: float) -> str:
        """A value as text, in the unit and with the digits of the column."""
        return f'{value / self.scale:.{self.digits}f}'

    def show(self, cell: Cell, plus_minus: str) -> str:
        """The mean of a cell as text, with the standard deviation if there are several values."""
        text = self.number(cell.mean)
        return f'{text}{plus_minus}{self.number(cell.deviation)}' if len(cell.values) > 1 else text


@dataclass(frozen=True)
class Difference:
    """The accuracy of a model minus that of the model that it is compared with.

    Args:
        metric: Name of the accuracy, as 'mIoU'.
        model: Name of the model.
        reference: Name of the model that it is compared with.
        value: The difference, in percent.
        interval: The 95 % interval; None if neither the figures of images nor several seeds are known.
        p: The p-value, corrected for the number of models that are compared; None without an interval.
        images: Number of images that the interval covers; 0 if it does not cover other images.
        seeds: Number of trainings of the model and of the reference, if the interval covers other seeds.
        note: Why the interval does not cover more; may be empty.
    """
    metric: str
    model: str
    reference: str
    value: float
    interval: Optional[Tuple[float, float]] = None
    p: Optional[float] = None
    images: int = 0
    seeds: Tuple[int, ...] = ()
    note: str = ''

    @property
    def verdict(self) -> str:
        """'higher', 'lower', 'not distinguishable' or 'not known'."""
        if self.p is None:
            return 'not known'
        if self.p >= SIGNIFICANT:
            return 'not distinguishable'
        return 'higher' if self.value > 0 else 'lower'

    @property
    def ends(self) -> str:
        """The interval as text."""
        return EMPTY if self.interval is None else ' to '.join(map(signed, self.interval))

    @property
    def over(self) -> str:
        """What the interval covers."""
        parts = [f'{self.images} images'] if self.images else []
        if self.seeds:
            parts.append(f"{' and '.join(map(str, self.seeds))} seeds")
        return ', '.join(parts)

    def to_dict(self) -> dict:
        """The contents for a JSON file, in percent."""
        return dict(metric=self.metric, model=self.model, reference=self.reference, difference=self.value,
                    interval=self.interval and list(self.interval), p_holm=self.p, images=self.images,
                    seeds=list(self.seeds), verdict=self.verdict, note=self.note)


@dataclass(frozen=True)
class Agreement:
    """How far two columns rank the models in the same order.

    Args:
        first: The title of a column.
        second: The title of another.
        tau: Kendall's tau-b.
        p: Its p-value.
        models: Number of models that have both.
    """
    first: str
    second: str
    tau: float
    p: float
    models: int

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        return (f"Ranked by {self.first} and by {self.second}: Kendall's tau is {self.tau:.2f} over {self.models} "
                f'models (p = {self.p:.2g})')


@dataclass
class StudyRow:
    """A row of the table: a model.

    Args:
        name: Name of the model.
        config: Path of its config.
        cells: Cells by the key of the column.
        cites: BibTeX keys that are cited with the name.
    """
    name: str
    config: str
    cells: Dict[str, Cell] = field(default_factory=dict)
    cites: List[str] = field(default_factory=list)


@dataclass
class StudyReport:
    """``columns`` by key, in their order; those that no line has are not shown. ``caption`` are sentences with the keys
    of what each is cited with. ``facts`` is what the JSON says besides: versions, settings, runs. ``differences`` and
    ``agreements`` may be empty."""
    title: str
    lines: List[StudyRow]
    columns: Dict[str, Column]
    caption: List[Tuple[str, List[str]]]
    facts: dict = field(default_factory=dict)
    differences: List[Difference] = field(default_factory=list)
    agreements: List[Agreement] = field(default_factory=list)

    @property
    def shown(self) -> Dict[str, Column]:
        """The columns in which at least one model has a number."""
        return {key: column for key, column in self.columns.items() if any(key in line.cells for line in self.lines)}

    @property
    def sources(self) -> List[str]:
        """Where the numbers come from, each place once, in the order of the columns."""
        return list(dict.fromkeys(line.cells[key].source for key in self.shown for line in self.lines
                                  if key in line.cells))

    def to_dict(self) -> dict:
        """The contents for a JSON file, not rounded."""
        columns = {key: column._asdict() for key, column in self.shown.items()}
        models = [dict(name=line.name, config=line.config, cites=line.cites,
                       cells={key: line.cells[key].to_dict() for key in self.shown if key in line.cells})
                  for line in self.lines]
        caption = [dict(text=text, cites=cites) for text, cites in self.caption]
        return dict(title=self.title, caption=caption, columns=columns, models=models,
                    differences=[one.to_dict() for one in self.differences],
                    agreements=[asdict(one) for one in self.agreements], **self.facts)

    def rows(self) -> List[List[str]]:
        """The table as text, with its head. The bracketed numbers in its cells are those of ``sources``, from 1 on."""
        sources = self.sources
        rows = [['model', *(column.title for column in self.shown.values())]]
        for line in self.lines:
            cells = (line.cells.get(key) for key in self.shown)
            rows.append([line.name, *(
                f'{column.show(cell, " ± ")} [{sources.index(cell.source) + 1}]' if cell else EMPTY
                for column, cell in zip(self.shown.values(), cells))])
        return rows

    def difference_rows(self) -> List[List[str]]:
        """The table of differences as text, with its head; empty if there are none."""
        rows = [['model', 'compared with', 'accuracy', 'difference', '95 % interval', 'over', 'p (Holm)', 'verdict']]
        for one in self.differences:
            p = EMPTY if one.p is None else '< 0.001' if one.p < 0.001 else f'{one.p:.3f}'
            rows.append([one.model, one.reference, f'{one.metric} (%)', signed(one.value), one.ends, one.over or EMPTY,
                         p, one.verdict])
        return rows if self.differences else []

    def remarks(self) -> List[str]:
        """What is to be said about the differences, and of how far rankings agree, in sentences without a full stop."""
        said = []
        if self.differences:
            number = len({one.model for one in self.differences})
            said.append(f'Every model is compared with "{self.differences[0].reference}", which makes '
                        f'{_counted(number)}')
            said.append(INTERVALS.format(number=_counted(number), level=SIGNIFICANT))
            notes: Dict[str, List[str]] = {}
            for one in self.differences:
                notes.setdefault(one.note, []).append(one.model)
            said += [f"{', '.join(dict.fromkeys(models))}: {note}" for note, models in notes.items() if note]
        return said + [one.sentence for one in self.agreements]

    def markdown(self) -> str:
        """The table, the list of sources that the bracketed numbers in its cells are of, and the differences."""
        sources = self.sources
        head, *rest = self.rows()
        text = [markdown_table(head, rest, ['---', *('---:' for _ in self.shown)]), '',
                *(f'[{number}] {source}  ' for number, source in enumerate(sources, 1))]
        differences = self.difference_rows()
        if differences:
            head, *rest = differences
            text += ['', markdown_table(head, rest, ['---', '---', '---', '---:', '---:', '---', '---:', '---'])]
        text += itertools.chain.from_iterable(('', f'{remark}.') for remark in self.remarks())
        return '\n'.join(text)

    def latex(self) -> str:
        """Table environments for ``\\usepackage{booktabs}``, with ``\\cite``, the sources under the first table, and
        the differences in a second."""
        sources = self.sources
        table = 'table*' if len(self.shown) > 5 else 'table'  # over both columns of a page
        head = ['Model', *(column.title for column in self.shown.values())]
        rows = [[escape(text) for text in head]]
        for line in self.lines:
            row = [escape(line.name) + cite(line.cites)]
            for key, column in self.shown.items():
                cell = line.cells.get(key)
                row.append('--' if cell is None else f'${column.show(cell, chr(92) + "pm ")}$'
                           f'\\textsuperscript{{{sources.index(cell.source) + 1}}}')
            rows.append(row)
        body = [' & '.join(row) + r' \\' for row in rows]
        caption = ' '.join(f'{escape(text)}{cite(cites)}.' for text, cites in self.caption)
        return '\n'.join([
            r'% needs \usepackage{booktabs}; the keys are in references.bib',
            rf'\begin{{{table}}}[t]', r'  \centering', rf'  \caption{{{escape(self.title)}. {caption}}}',
            rf'  \begin{{tabular}}{{l{"r" * len(self.shown)}}}', r'    \toprule', f'    {body[0]}', r'    \midrule',
            *(f'    {row}' for row in body[1:]), r'    \bottomrule', r'  \end{tabular}',
            r'  \par\smallskip\footnotesize',
            *(rf'  \textsuperscript{{{number}}}~{escape(source)}.\par' for number, source in enumerate(sources, 1)),
            rf'\end{{{table}}}', *self._latex_differences(), ''])

    def _latex_differences(self) -> List[str]:
        rows = [' & '.join(map(escape, row)) + r' \\' for row in self.difference_rows()]
        if not rows:
            return []
        caption = '. '.join([f'Differences of accuracy. {self.title}', *self.remarks()])
        return ['', r'\begin{table*}[t]', r'  \centering', rf'  \caption{{{escape(caption)}.}}',
                r'  \begin{tabular}{lllrrlrl}', r'    \toprule', f'    {rows[0]}', r'    \midrule',
                *(f'    {row}' for row in rows[1:]), r'    \bottomrule', r'  \end{tabular}', r'\end{table*}']


def signed(value: float) -> str:
    """A difference of percentages as text, always with its sign."""
    text = f'{value:+.2f}'
    return text.replace('-', '−') if float(text) else text[1:]


def _counted(number: int) -> str:
    return f"{number} comparison{'s' if number > 1 else ''}"


def escape(text: str) -> str:
    """Escape a text for LaTeX."""
    return ''.join(_ESCAPED.get(letter, letter) for letter in text)


def cite(keys: Sequence[str]) -> str:
    """Returns a non-breaking space and a citation in LaTeX; empty without keys."""
    return f"~\\cite{{{','.join(keys)}}}" if keys else ''


def cited(latex: str) -> List[str]:
    """Returns the keys that a LaTeX text cites, without duplicates."""
    return list(dict.fromkeys(key for group in re.findall(r'\\cite\{([^}]*)\}', latex) for key in group.split(',')))


class References:
    """BibTeX entries by key, each with its text and what it is ``of``.

    Args:
        path: The file ``references.yml``, with the entries of methods and data sets. Those of families come from the
            records in the folder ``metafiles`` beside it.
    """

    def __init__(self, path: Path):
        self.entries = {}
        for record in read_records(path.parent / 'metafiles').values():
            for collection in record['Collections']:
                key = re.match(r'\s*@\w+\{([^,\s]+)', collection['BibTeX'])[1]
                entry = self.entries.setdefault(key, {'of': [], 'bibtex': collection['BibTeX']})
                entry['of'] += collection['Backbones']  # several families may be of one paper
        self.entries.update(yaml.safe_load(path.read_text(encoding='utf-8')))

    def of(self, names: Iterable[str]) -> List[str]:
        """The keys of what is of one of the names: class names of configs, or the beginnings of data sets' names."""
        names = list(names)
        return [key for key, entry in self.entries.items()
                if any(name in entry['of'] or any(name.lower().startswith(start) for start in entry.get('data', ()))
                       for name in names)]

    def bibtex(self, keys: Iterable[str]) -> str:
        """The text of a .bib file with these entries."""
        return '\n'.join(self.entries[key]['bibtex'] for key in keys)


def plot_study(report: StudyReport, accuracy: str, axes: Sequence[str]) -> 'Figure':
    """Accuracy of each model with all its seeds, its difference to another model, and accuracy against each of some
    other columns. A difference that is not distinguishable from none is drawn hollow, and named.

    Args:
        report: Of which models without this accuracy are left out.
        accuracy: The key of a column that some line has.
        axes: Keys of columns, each of which makes a panel of the models that have it.
    """
    from matplotlib.figure import Figure

    lines = [line for line in report.lines if accuracy in line.cells]
    axes = [key for key in axes if any(key in line.cells for line in lines)]
    column = report.columns[accuracy]
    differences = [one for one in report.differences if column.title.startswith(one.metric) and one.interval]
    look = looks(itertools.chain((line.name for line in lines), (one.model for one in differences)))
    number = 1 + bool(differences) + len(axes)
    names = [wrapped(line.name, LABEL) for line in lines]
    figure = Figure(figsize=(9.6, (1 + number) // 2 * max(3.4, 1.5 + rows_height(names))), layout='constrained')
    first, *others = add_panels(figure, number)
    if differences:
        _plot_differences(others.pop(0), differences, look)
    for place, line in enumerate(lines):
        cell, (colour, marker) = line.cells[accuracy], look[line.name]
        values = [value / column.scale for value in cell.values]
        first.errorbar(cell.mean / column.scale, place, xerr=cell.deviation / column.scale, fmt=marker, capsize=4,
                       color=colour)
        if len(values) > 1:
            first.scatter(values, [place] * len(values), marker='|', s=160, color=colour, alpha=0.6)
    first.set_yticks(range(len(lines)), names)
    first.margins(x=0.15)
    first.set_ylim(len(lines) - 0.4, -0.6)
    for label, line in zip(first.get_yticklabels(), lines):
        label.set_color(look[line.name].colour)
    first.set_xlabel(column.title)
    first.grid(axis='x', alpha=0.3)
    named = {}
    for axis, key in zip(others, axes):
        other = report.columns[key]
        for line in lines:
            if key in line.cells:
                x, cell, (colour, marker) = line.cells[key].mean / other.scale, line.cells[accuracy], look[line.name]
                axis.errorbar(x, cell.mean / column.scale, yerr=cell.deviation / column.scale, fmt=marker, capsize=4,
                              color=colour)
                named.setdefault(axis, []).append(
                    Point(line.name, x, cell.mean / column.scale, colour, cell.deviation / column.scale))
        axis.set(xlabel=other.title, ylabel=column.title)
        axis.margins(0.15)
        axis.set_xlim(0, 1.15 * max(point.x for point in named[axis]))
        axis.grid(alpha=0.3)
    figure.suptitle(wrapped(report.title, 100), fontsize=10)
    name_points(figure, named)
    return figure


def _plot_differences(axes: 'Axes', differences: Sequence[Difference], look: Dict[str, Look]) -> None:
    """Draws each difference with its interval, and the line of no difference."""
    names = []
    for place, one in enumerate(differences):
        colour, marker = look[one.model]
        unclear = one.verdict == 'not distinguishable'
        axes.plot(one.interval, [place, place], '|-', color=colour, markersize=8)
        axes.plot(one.value, place, marker, color=colour, markerfacecolor='white' if unclear else colour)
        names.append(wrapped(one.model, LABEL) + '\nnot distinguishable' * unclear)
    axes.axvline(0, color='grey', linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for label, one in zip(axes.get_yticklabels(), differences):
        label.set_color(look[one.model].colour)
    against = wrapped(f'compared with {differences[0].reference}', 34)  # as wide as the axes
    axes.set_xlabel(f'{differences[0].metric} (%): difference, 95 % interval\n{against}')
    axes.grid(axis='x', alpha=0.3)
