"""Write docs/claims.md: each claim of the papers beside what was measured here.

    python docs/figures/claims.py                              # the page, from the files that are there
    python docs/figures/claims.py --add NAME REPORT --commit C  # takes a study's report.json over, then writes the page

claims.yml has the claims. Measured figures are read from studies/NAME.json (reports of ``mmlk compare``) and from
records/NAME.json (of measure_claims.py); lines whose file is missing say that it was not run yet.
"""
import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

import yaml
from scipy.stats import t as students_t

from mmlk._text import markdown_table
from mmlk.evaluation.statistics import standard_error

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / 'claims.md'
HOW = {'studies': 'tools/compare.py configs/studies/{}.yml --train --seeds 0 1 2',
       'records': 'docs/figures/measure_claims.py {}'}
INTRODUCTION = """\
# Claims, and what is measured here

Each line is a claim of a paper on large kernels: what was published, and what was measured with this toolbox. The
measurements are small: networks trained for minutes, most of them from scratch, on drawn scenes or on a few hundred
photographs, and speed on the machine that is named at the end. What does not show here may hold at the papers' scale,
and the other way round.

- **Measured here** is the mean, its 95 % interval in brackets, and n. Over trainings, n is the number of seeds of each
  network, and the interval of the difference is that of Welch's t-test. Over turns or images, which are measured side
  by side, it is Student's t interval of the differences or ratios within them. It tells how far turns or images vary on
  one machine, not how far machines do.
- **Verdict**: the claim *shows at this scale* if the whole interval is where the claim says, and *does not show* if the
  whole interval is elsewhere. Otherwise it *cannot be decided at this scale*. The intervals are not corrected for the
  number of lines: of twenty networks that do not differ, one is expected to seem to.
"""


class Interval(NamedTuple):
    """A mean with its 95 % interval, which is None if there is a single value, and how many values it is of."""
    mean: float
    low: Optional[float]
    high: Optional[float]
    n: str

    def times(self, factor: float) -> 'Interval':
        return Interval(*(value and value * factor for value in self[:3]), self.n)


def interval(mean: float, error: float, freedom: float, n: str) -> Interval:
    """Student's t interval of a mean with this standard error."""
    half = float(students_t.ppf(0.975, freedom)) * error if error else 0.0
    return Interval(mean, mean - half, mean + half, n)


def of_groups(groups: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> Interval:
    """The weighted sum of the means of independent groups; its interval is Welch's, with Satterthwaite's degrees of
    freedom."""
    mean = sum(weight * statistics.fmean(groups[name]) for name, weight in weights.items())
    sizes = sorted({len(groups[name]) for name in weights})
    n = ' and '.join(map(str, sizes))
    if sizes[0] < 2:
        return Interval(mean, None, None, n)
    return interval(mean, *standard_error([groups[name] for name in weights], list(weights.values())), n)


def of_pairs(values: Sequence[float]) -> Interval:
    """The mean of values that are differences or ratios already."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, None, None, str(n))
    return interval(mean, statistics.stdev(values) / math.sqrt(n), n - 1, str(n))


def verdict(found: Interval, expect: Mapping[str, float]) -> str:
    """Whether the interval is where ``expect`` says: above or below a number, or within plus and minus a number."""
    (where, limit), = expect.items()
    if where not in ('above', 'below', 'within'):
        raise ValueError(f"expect is above, below or within, got '{where}'")
    if found.low is not None:
        above, below = found.low > limit, found.high < limit
        if {'above': above, 'below': below, 'within': -limit < found.low and found.high < limit}[where]:
            return 'shows at this scale'
        if {'above': below, 'below': above, 'within': above or found.high < -limit}[where]:
            return 'does not show'
    return 'cannot be decided at this scale'


def read(kind: str, name: str) -> Optional[dict]:
    path = FOLDER / kind / f'{name}.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def accuracies(report: dict, metric: str = 'mIoU') -> Dict[str, List[float]]:
    """The values that were trained here, one for each seed, by the names of the models."""
    found = {}
    for model in report['models']:
        for column, cell in model['cells'].items():
            if column.startswith(f'{metric}, ') and column.endswith(', trained here'):
                found[model['name']] = cell['values']
    return found


def pick(samples: Mapping[str, Sequence[float]], names: Sequence[str], where: str) -> List[Sequence[float]]:
    missing = [name for name in names if name not in samples]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; it has {', '.join(samples)}")
    return [samples[name] for name in names]


def study_interval(report: dict, measured: Mapping) -> Interval:
    values, weights = accuracies(report), measured['difference']
    pick(values, list(weights), f"studies/{measured['study']}.json")
    return of_groups(values, weights)


def record_interval(record: dict, measured: Mapping) -> Interval:
    names = measured.get('ratio') or list(measured['difference'])
    columns = pick(record['samples'], names, f"records/{measured['record']}.json")
    if 'ratio' in measured:
        return of_pairs([above / below * measured.get('factor', 1) for above, below in zip(*columns)])
    weights = measured['difference'].values()
    return of_pairs([sum(weight * value for weight, value in zip(weights, row)) for row in zip(*columns)])


def show(found: Interval, signed: bool, percent: bool) -> str:
    """The interval as text: with two digits behind the point, one if it is a percentage or large."""
    found = found.times(100) if percent else found
    sign = '+' if signed else ''
    digits = 1 if percent or abs(found.mean) >= 100 else 2
    text = f'{found.mean:{sign}.{digits}f}' + ' %' * percent
    if found.low is not None:
        text += f' ({found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f})'
    return text


def line(claim: Mapping, group: Mapping, sources: Mapping) -> List[str]:
    """The cells of a claim: the claim, published, measured here, verdict."""
    key, _, place = claim['source'].partition(', ')
    published = f"{claim['published']} ([{key}]({sources[key]['url']}), {place})"
    measured = claim['measured']
    if 'cannot' in measured:
        return [claim['claim'], published, f"cannot be measured here: {measured['cannot']}", '–']
    kind, units = ('study', 'seeds') if 'study' in measured else ('record', '')
    name = measured[kind]
    content = read('studies' if kind == 'study' else 'records', name)
    if content is None:
        return [claim['claim'], published, f'not yet run: `{name}`', '–']
    found = study_interval(content, measured) if kind == 'study' else record_interval(content, measured)
    is_ratio = 'ratio' in measured
    expect = claim.get('expect') or {'above': 1 if is_ratio else 0}
    unit = measured.get('unit', group['unit'])
    units = units or content['samples_are']
    text = (f"{show(found, not is_ratio, group.get('percent', False))} {unit}, n = {found.n} "
            f"{units[:-1] if found.n == '1' else units}, `{name}`")
    return [claim['claim'], published, text, verdict(found, expect)]


def names_of(claims: Mapping, kind: str) -> List[str]:
    """The studies or records that the claims name, in their order."""
    return list(dict.fromkeys(claim['measured'][kind] for group in claims['groups'] for claim in group['claims']
                              if kind in claim['measured']))


def origin(kind: str, name: str) -> str:
    """What one of the studies or records was made by, or how to make it."""
    content = read(kind, name)
    if content is None:
        return f'- `{name}`, not yet run: `python {HOW[kind].format(name)}`'
    facts = [f"`{content['command']}`", f"commit {content['commit']}", content['machine'],
             ', '.join(f'{package} {version}' for package, version in content['versions'].items())]
    if 'date' in content:
        facts.append(content['date'])
    if 'title' in content:
        column = next(column for column in content['models'][0]['cells'] if column.endswith(', trained here'))
        facts.insert(0, content['models'][0]['cells'][column]['detail'].split(', on ')[0])
    return f"- `{name}`: {'; '.join(facts)}"


def page() -> str:
    claims = yaml.safe_load((FOLDER / 'claims.yml').read_text(encoding='utf-8'))
    parts = ['<!-- Written by docs/figures/claims.py from claims.yml and measured figures beside it: edit those. -->',
             INTRODUCTION]
    for group in claims['groups']:
        parts += [f"## {group['title']}", '', *([group['text'], ''] if 'text' in group else [])]
        rows = [line(claim, group, claims['sources']) for claim in group['claims']]
        parts += [markdown_table(['claim', 'published', 'measured here', 'verdict'], rows), '']
    parts += ['## What the figures are from', '', 'All values of each study, all samples of the other measurements, and'
              ' the claims themselves are in `docs/figures`.', '']
    parts += [origin('studies', name) for name in names_of(claims, 'study')]
    parts += [origin('records', name) for name in names_of(claims, 'record')]
    parts += ['', 'Papers; tables of RepLKNet are numbered as in the first version of its manuscript:', '']
    parts += [f"- {key}: [{source['text']}]({source['url']})" for key, source in claims['sources'].items()]
    return '\n'.join(parts) + '\n'


def without_paths(command: str) -> str:
    """A command without the folder of its results, and with DIR and FILE for other paths of a machine."""
    command = re.sub(r'\s+--out\s+\S+', '', command)
    return re.sub(r'(?<=\s)/\S+', lambda path: 'FILE' if Path(path[0]).suffix else 'DIR', command)


def add_study(name: str, report: dict, commit: str) -> dict:
    """What a study's file keeps of a report.json: no settings and logs, which name folders of the machine."""
    kept = {key: report[key] for key in ('title', 'caption', 'columns', 'models', 'versions', 'machine', 'differences')
            if key in report}
    return dict(kept, command=without_paths(report['command']), commit=commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--add', nargs=2, metavar=('NAME', 'REPORT'), help="take a study's report.json over as NAME")
    parser.add_argument('--commit', help='that the study was run at')
    args = parser.parse_args()
    if bool(args.add) != bool(args.commit):
        parser.error('--add and --commit are given together')
    if args.add:
        name, path = args.add
        kept = add_study(name, json.loads(Path(path).read_text(encoding='utf-8')), args.commit)
        (FOLDER / 'studies').mkdir(exist_ok=True)
        (FOLDER / 'studies' / f'{name}.json').write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n',
                                                         encoding='utf-8')
    PAGE.write_text(page(), encoding='utf-8')


if __name__ == '__main__':
    main()
