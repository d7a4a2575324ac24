"""Compares models: trained with one budget and several seeds, or from known results. Finished steps are kept.

A comparison's folder holds, for each config and seed, ``runs/CONFIG/seed0/`` with the whole config that is trained,
logs and ``run.json``, which says what is done. What is done is not done again; a run of other settings is refused.
"""
import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import mmcv
import mmengine
import numpy as np
import torch
import yaml
from mmengine.config import Config

import mmlk
from mmlk._files import whole
from mmlk._paths import MIM
from mmlk._text import one_line, printable
from mmlk._types import scoped_name, type_name, with_paths
from mmlk.analysis import erf, latency, zoo
from mmlk.analysis.panels import distinct_palette
from mmlk.datasets.check import LAYOUTS, SPLITS, datasets, evaluators, layout_of
from mmlk.datasets.images import read_image
from mmlk.engine.network import check_backbone, weights_of
from mmlk.engine.probe import CAUTION
from mmlk.evaluation.robustness import Plan
from mmlk.studies.report import Cell, Column

#: What a config's accuracy is called, and where a test's figures have it.
METRICS = {'segmentation': {'mIoU': ('mIoU', 1.0)},
           'detection': {'box AP': ('coco/bbox_mAP', 100.0), 'mask AP': ('coco/segm_mAP', 100.0)}}
#: Faults that :func:`mmlk.datasets.audit.audit` finds and that stop a training or falsify a test.
FATAL = ('category out of range', 'class unknown to the file', 'colours for labels', 'dataset cannot be loaded',
         'image file missing', 'image without annotation', 'label out of range', 'label that a head lacks',
         'malformed file', 'masks of 0 and 255', 'no classes', 'no images', 'nothing but the ignored label',
         'pipeline fails', 'sizes differ', 'unreadable annotation', 'unreadable image')
# What data sets are called in their usual folders; elsewhere a folder may hold others in their layout.
_USUAL = {('ADE20KDataset', 'ADEChallengeData2016'): 'ADE20K', ('CityscapesDataset', 'cityscapes'): 'Cityscapes',
          ('PascalVOCDataset', 'VOC2012'): 'Pascal VOC 2012', ('CocoDataset', 'coco'): 'COCO'}
_PROGRESS = re.compile(r'(?:Iter|Epoch)\((train|test)\) +((?:\[[\s\d/]+\])+)')

Tick = Callable[[str, int, int], object]


@dataclass
class ComparedModel:
    """A model to compare.

    Args:
        name: Name in the report.
        path: Path of its config.
        cfg: The config.
        checkpoint: A checkpoint to test. None to train the model.
    """
    name: str
    path: str
    cfg: Config
    checkpoint: Optional[str] = None

    @property
    def stem(self) -> str:
        """The name of the config file without its ending; the folder of its runs has this name."""
        return Path(self.path).stem

    @property
    def task(self) -> str:
        """'segmentation' or 'detection'.

        Raises:
            ValueError: It is neither.
        """
        scope = self.cfg.get('default_scope')
        tasks = {'mmseg': 'segmentation', 'mmdet': 'detection'}
        if scope not in tasks:
            raise ValueError(f'{self.path}: only segmentors and detectors are compared, whose configs have '
                             f"default_scope = 'mmseg' or 'mmdet'; this one has {scope!r}")
        return tasks[scope]

    @property
    def data(self) -> str:
        """Name of the dataset on which the model is tested."""
        _, dataset = next(datasets(self.cfg, 'test'))
        root = Path(dataset.get('data_root') or '')
        if 'demo' in root.parts:
            return 'demo scenes'
        return _USUAL.get((type_name(dataset), root.name)) or root.name or type_name(dataset)

    @property
    def cited_names(self) -> List[str]:
        """Names of the backbone in the list of references; of timm's models, ``timm:NAME`` with and without the tag."""
        backbone = self.cfg.model.backbone
        model = str(backbone.get('model_name', ''))
        return [scoped_name(backbone), *(f'timm:{name}' for name in dict.fromkeys((model, model.partition('.')[0]))
                                         if name)]

    @property
    def method_names(self) -> List[str]:
        """Names of the method and of its heads in the list of references."""
        model = self.cfg.model
        heads = model.get('decode_head') or {}
        return [type_name(part) for part in (model, *(heads if isinstance(heads, list) else [heads])) if 'type' in part]


@dataclass
class Study:
    """A list of configs that answer a question of a paper.

    Args:
        title: Title of the study.
        configs: Paths of the configs by the name of the model.
        finding: The result of the paper.
        source: Where the paper reports it.
    """
    title: str
    configs: Dict[str, str]
    finding: str = ''
    source: str = ''


def read_study(path: Path) -> Study:
    """Reads the YAML file of a study. Paths of configs in it are relative to the file.

    Raises:
        ValueError: The file cannot be read or is not a study. The message says what is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    configs = content.get('configs') if isinstance(content, dict) else None
    if not isinstance(configs, dict) or not configs or not all(isinstance(v, str) for v in configs.values()):
        raise ValueError(f'{path} is no study: it needs title, finding, source, and configs with a path for each name')
    unknown = set(content) - {'title', 'finding', 'source', 'configs'}
    if unknown:
        raise ValueError(f"{path}: a study has no {', '.join(sorted(map(str, unknown)))}")
    configs = {one_line(str(name)): str(path.parent / config) for name, config in configs.items()}
    title, finding, source = (printable(str(content.get(key) or '')) for key in ('title', 'finding', 'source'))
    try:
        finding = with_published(finding)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    return Study(title or path.stem, configs, finding, source)


def with_published(text: str) -> str:
    """Returns the text with each name in braces, of a config of the zoo, replaced with its published result.

    Raises:
        ValueError: The zoo has no such config, or no result was published for it.
    """
    names = re.findall(r'\{([^{}]*)\}', text)
    rows = {row['Name']: row for row in zoo.rows(zoo.read(MIM))} if names else {}
    for name in names:
        if 'Results' not in rows.get(name, {}):
            raise ValueError(f'{{{name}}} is no config with a published result in configs/metafiles')
        metrics = rows[name]['Results'][0]['Metrics']
        text = text.replace(f'{{{name}}}', f'{next(iter(metrics.values())):.2f}')
    return text


def check_models(entries: Sequence[ComparedModel]) -> None:
    """Check that models can be compared.

    Raises:
        ValueError: There are no models, two have the same name, one has no backbone, or their tasks or data differ.
    """
    if not entries:
        raise ValueError('there is no config to compare')
    for what, names in (('name', [entry.name for entry in entries]), ('file name', [entry.stem for entry in entries])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two configs have the same {what}: {', '.join(twice)}")
    for entry in entries:
        try:
            check_backbone(entry.cfg)
        except ValueError as error:
            raise ValueError(f'{entry.path}: {error}') from error
        if not list(datasets(entry.cfg, 'test')):
            raise ValueError(f'{entry.path}: the config has no test_dataloader with a dataset')
    for what in ('task', 'data'):
        found = {entry.path: getattr(entry, what) for entry in entries}
        if len(set(found.values())) > 1:
            listed = '; '.join(f'{path}: {value}' for path, value in found.items())
            raise ValueError(f'the configs are of different {what}, and their accuracy cannot be compared: {listed}')


def read_classes(given: str) -> List[str]:
    """Returns the class names in a text file, or generates names for a number of classes.

    The file has one name a line, in the order of the labels. A number before a name, as in ``1 sky``, is removed. If
    there are several columns separated by tabs, as in ADE20K's objectInfo150.txt, the last one is used.

    Raises:
        ValueError: The argument is neither a file with names nor a number.
    """
    if given.isdecimal() and int(given) > 0:
        return [f'class {number}' for number in range(1, int(given) + 1)]
    try:
        lines = Path(given).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'classes are a number or a text file with one name a line; {given}: {error}') from error
    lines = [line.strip() for line in lines if line.strip()]
    numbered = [bool(re.match(r'\d+\s', line)) for line in lines]
    if len(lines) > 1 and all(numbered[1:]):
        lines = lines[0 if numbered[0] else 1:]  # without a head
        lines = [re.sub(r'^\d+\s+', '', line) for line in lines]
    names = [line.split('\t')[-1].strip() for line in lines]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{given} names {'no class' if not names else 'a class twice'}")
    return names


def use_data(cfg: Config, root: Optional[str], classes: Optional[Sequence[str]]) -> None:
    """Changes a config's datasets, evaluators and heads to other data with the same folder layout.

    Args:
        cfg: The config. It is changed in-place.
        root: The folder of the data. None to keep the one of the config.
        classes: The names of the classes. None to keep those of the config.
    """
    roots = set()
    for _, dataset in itertools.chain.from_iterable(datasets(cfg, split) for split in SPLITS):
        if root is not None:
            roots.add(dataset.get('data_root') or '')
            dataset['data_root'] = f'{root}/'
        if classes is not None:
            layout = layout_of(dataset)
            if type_name(dataset) in ('ADE20KDataset', 'CityscapesDataset'):  # they accept no class names but their own
                dataset.update(type='BaseSegDataset', img_suffix=LAYOUTS[layout].suffixes['img_path'],
                               seg_map_suffix=LAYOUTS[layout].suffixes['seg_map_path'],
                               reduce_zero_label=layout == 'ade20k')
            known = (dataset.get('metainfo') or {}).get('classes', ())
            if tuple(known) != tuple(classes):  # else the config's own colours stay
                dataset['metainfo'] = dict(classes=tuple(classes), palette=distinct_palette(len(classes)))
    for split in SPLITS if root is not None else ():
        for _, evaluator in evaluators(cfg, split):
            for old in sorted(roots, key=len, reverse=True):
                if old and str(evaluator.get('ann_file', '')).startswith(old):
                    evaluator['ann_file'] = str(Path(root, evaluator['ann_file'][len(old):].lstrip('/')))
                    break
    if classes is not None:
        for name, part in (cfg.get('model') or {}).items():
            if name != 'backbone':
                _set_num_classes(part, len(classes))


def _set_num_classes(part: Any, number: int) -> None:
    if isinstance(part, dict):
        if 'num_classes' in part:
            part['num_classes'] = number
        for inner in part.values():
            _set_num_classes(inner, number)
    elif isinstance(part, (list, tuple)):
        for inner in part:
            _set_num_classes(inner, number)


def training_length(cfg: Config) -> Tuple[int, str]:
    """Returns the length of a config's training, and its unit: 'iterations' or 'epochs'.

    Raises:
        ValueError: The config does not set it.
    """
    loop = cfg.get('train_cfg') or {}
    for key, unit in (('max_iters', 'iterations'), ('max_epochs', 'epochs')):
        if loop.get(key):
            return loop[key], unit
    raise ValueError('the config does not say how long it trains: train_cfg has no max_iters or max_epochs')


def use_budget(cfg: Config, budget: int) -> None:
    """Scales a config's whole schedule to a number of iterations, or of epochs if the config counts in epochs.

    The model is not validated during training, but tested at the end. Four checkpoints are saved during training, from
    which an interrupted run can be resumed.
    """
    old, unit = training_length(cfg)
    factor, by_epoch = budget / old, unit == 'epochs'
    cfg.train_cfg['max_epochs' if by_epoch else 'max_iters'] = budget
    cfg.train_cfg.update(val_interval=budget, val_begin=budget + 1)
    for scheduler in _schedulers(cfg.get('param_scheduler')):
        last = budget if scheduler.get('by_epoch', True) == by_epoch else None
        # a warm-up of one step would never end
        for key, least in (('begin', 1), ('end', 2), ('T_max', 1), ('step_size', 1)):
            if isinstance(scheduler.get(key), int) and scheduler[key] > 0:
                scheduler[key] = max(least, round(scheduler[key] * factor))
                if last is not None:
                    scheduler[key] = min(scheduler[key], last if key == 'end' else max(1, last - 1))
        if 'milestones' in scheduler:
            scheduler['milestones'] = [max(1, round(step * factor)) for step in scheduler['milestones']]
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = {name: cfg.default_hooks.get(name) or dict(type=kind) for name, kind in
             (('checkpoint', 'CheckpointHook'), ('logger', 'LoggerHook'))}  # mmengine's, where a config is silent
    hooks['checkpoint'].update(interval=max(1, budget // 4), by_epoch=by_epoch, max_keep_ckpts=1)
    if not by_epoch:
        hooks['logger']['interval'] = min(hooks['logger'].get('interval', 50), max(1, budget // 10))
    cfg.default_hooks.update(hooks)


def _schedulers(settings: Any) -> Iterator[dict]:
    """Yields the schedulers of a config: one, a list of them, or either of these for each of several optimizers."""
    if isinstance(settings, dict) and 'type' in settings:
        yield settings
    elif isinstance(settings, (dict, list, tuple)):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _schedulers(part)


class RunFailed(Exception):
    """The training or test of a run ended with an error. The message contains the last lines of its output."""


@dataclass
class Run:
    """One config that is trained with one seed and tested, or one checkpoint that is tested (``seed`` is None).

    All files of the run are in ``folder``.
    """
    entry: ComparedModel
    seed: Optional[int]
    folder: Path
    state: Dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return self.entry.name if self.seed is None else f'{self.entry.name}, seed {self.seed}'

    @property
    def config(self) -> Path:
        """Path of the complete config that is run."""
        return self.folder / f'{self.entry.stem}.py'

    @property
    def checkpoint(self) -> Optional[str]:
        """Path of the checkpoint to test; None if training is not finished."""
        if self.seed is None:
            return self.entry.checkpoint
        path = self.folder / 'train' / self.state.get('checkpoint', 'none')
        return str(path) if path.is_file() else None

    @property
    def report(self) -> Path:
        """The folder of the report of its test, with figures of each image."""
        return self.folder / 'report'

    @property
    def corruptions(self) -> Path:
        """The folder of its tests on corrupted images."""
        return self.folder / 'robustness'

    def corrupted(self, plan: Plan, seed: int = 0) -> bool:
        """Whether the checkpoint that was tested was tested on these corruptions with this seed, too."""
        return (self.state.get('corruptions') == dict(plan=plan, of=self._corruptions_of(seed))
                and (self.corruptions / 'robustness.json').is_file())

    def _corruptions_of(self, seed: int) -> List[Any]:
        """Returns what all results on corrupted images in a folder have in common."""
        return [self.state.get('tested_stamp'), seed, mmlk.__version__]

    @property
    def no_report(self) -> str:
        """Why a test of its config has no report; empty if it has one."""
        from mmlk.evaluation.report import why_no_report
        return why_no_report(self.entry.cfg)

    @property
    def finished(self) -> bool:
        """Whether the checkpoint was tested, with a report if there is one, and has not been overwritten since.

        A run that was tested is finished without its checkpoint, too: it is never trained for the report's sake.
        """
        if 'metrics' not in self.state:
            return False
        if self.checkpoint is None:
            return True
        stamp = self.state.get('tested_stamp')  # older runs have none
        if stamp is not None and stamp != list(_stamp(Path(self.checkpoint))):
            return False
        if self.no_report:
            return True
        files = self.state.get('report')  # runs of before there were reports have none
        return files is not None and all((self.report / name).is_file() for name in files)

    def settings(self) -> Config:
        """Returns the config of the model with the seed of this run, in a form that can be written to a file."""
        cfg = Config(with_paths(self.entry.cfg.to_dict()))
        if self.seed is not None:
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=self.seed)
        return cfg

    def open(self) -> None:
        """Reads the state that an earlier call saved. Writes nothing.

        Raises:
            ValueError: The earlier call had other settings.
        """
        if not self.config.is_file():
            return
        try:
            before = Config.fromfile(str(self.config))
            self.state = json.loads((self.folder / 'run.json').read_text())
        except FileNotFoundError:
            self.state = {}
        except Exception as error:
            raise ValueError(f'{self.folder} cannot be read; remove it to run it anew: {error}') from error
        changed = list(_differences(_flat(before.to_dict()), _flat(self.settings().to_dict())))
        if self.seed is None and self.state.get('tested', self.entry.checkpoint) != self.entry.checkpoint:
            changed.append(f"checkpoint: {self.entry.checkpoint} (was {self.state['tested']})")
        if changed:
            listed = '\n  '.join(changed[:6]) + (f'\n  and {len(changed) - 6} more' if len(changed) > 6 else '')
            raise ValueError(f'{self.folder} was run with other settings, and results of both would be mixed:\n  '
                             f'{listed}\nTake another --out, or remove that folder')

    def carry_out(self, tools: Path, tick: Tick) -> None:
        """Trains, if that is not finished, and tests.

        Args:
            tools: The folder of train.py and test.py.
            tick: Called to report progress, with 'train' or 'test', the number of steps done and their total.

        Raises:
            RunFailed: A tool ended with an error. Its results are kept, and the next call continues from there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.config.is_file():
            self.settings().dump(str(self.config))
        work = self.folder / 'train'
        if self.checkpoint is None and 'metrics' not in self.state:
            resume = ['--resume'] if (work / 'last_checkpoint').is_file() else []
            seconds = self._run([tools / 'train.py', self.config, '--work-dir', work, *resume], 'train', tick)
            self._keep(checkpoint=Path((work / 'last_checkpoint').read_text().strip()).name,
                       train_seconds=round(seconds, 1), resumed=bool(resume), machine=machine(), versions=versions())
        if not self.finished:
            stamp = list(_stamp(Path(self.checkpoint)))
            for folder in (self.folder / 'test', self.report):
                shutil.rmtree(folder, ignore_errors=True)
            report = [] if self.no_report else ['--report', self.report]
            seconds = self._run([tools / 'test.py', self.config, self.checkpoint, '--work-dir', self.folder / 'test',
                                 *report], 'test', tick)
            figures = json.loads(next((self.folder / 'test').glob('*/*.json')).read_text())
            written = sorted(path.name for path in self.report.glob('per_image*.npz'))
            self._keep(metrics=figures, report=written, tested=self.checkpoint, tested_stamp=stamp,
                       test_seconds=round(seconds, 1), machine=machine(), versions=versions())

    def corrupt(self, tools: Path, options: Sequence[str], plan: Plan, seed: int, tick: Tick) -> None:
        """Tests the checkpoint on corrupted images, as far as that was not done before.

        Args:
            tools: The folder of test.py.
            options: Its options, which make the plan.
            plan: The severities of each corruption.
            seed: Of their random numbers.
            tick: Called to report progress, with 'test', the number of steps done and their total, for each test.

        Raises:
            RunFailed: The test ended with an error. Its results are kept, and the next call continues from there.
        """
        of = self._corruptions_of(seed)
        if self.state.get('corruptions_of') != of:  # results of another checkpoint, seed or version
            shutil.rmtree(self.corruptions, ignore_errors=True)
        self._keep(corruptions_of=of, corruptions=None)
        self._run([tools / 'test.py', self.config, self.checkpoint, '--work-dir', self.corruptions / 'test',
                   *options, '--corruptions-dir', self.corruptions], 'test', tick, log='corruptions')
        self._keep(corruptions=dict(plan=plan, of=of))

    def _keep(self, **facts) -> None:
        self.state.update(facts)
        with whole(str(self.folder / 'run.json')) as temporary:
            Path(temporary).write_text(json.dumps(self.state, indent=1) + '\n')

    def _run(self, arguments: Sequence, step: str, tick: Tick, log: str = '') -> float:
        """Runs a tool, appends its output to a log file, and returns the seconds that it took."""
        began, last, path = time.monotonic(), deque(maxlen=12), self.folder / f'{log or step}.log'
        with path.open('a', buffering=1) as file, subprocess.Popen(
                [sys.executable, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors='replace') as process:
            try:
                for line in process.stdout:
                    file.write(line)
                    last.append(line)
                    done = progress_of(line, *(training_length(self.entry.cfg) if step == 'train' else (None, None)))
                    if done:
                        tick(step, *done)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise RunFailed(f'{self.label}: {step}ing ended with exit code {process.returncode}. Its last lines, of '
                            f"{path}:\n\n{''.join(last)}\nThe same command goes on from here once that is mended")
        return time.monotonic() - began


def with_weights(entries: Sequence[ComparedModel], runs: Sequence[Run]) -> List[Tuple[ComparedModel, str]]:
    """Returns the models that have a checkpoint, each with that of its first run that has one."""
    found = ((entry, next((run.checkpoint for run in runs if run.entry is entry and run.checkpoint), None))
             for entry in entries)
    return [(entry, checkpoint) for entry, checkpoint in found if checkpoint is not None]


def progress_of(line: str, total: Optional[int], unit: Optional[str]) -> Optional[Tuple[int, int]]:
    """Returns the number of steps done and their total from a line of mmengine's log; None if it has no such numbers.

    Args:
        line: As ``... Iter(train) [ 20/700] ...``, ``... Epoch(train) [1][ 25/75] ...`` or ``... [50/101] ...``.
        total: Iterations or epochs of the training; None for a test.
        unit: 'iterations' or 'epochs'.
    """
    found = _PROGRESS.search(line)
    if not found:
        return None
    numbers = [int(number) for number in re.findall(r'\d+', found[2])]
    if found[1] == 'train' and unit == 'epochs' and len(numbers) == 3:
        epoch, done, steps = numbers
        return (epoch - 1) * steps + done, total * steps
    return (numbers[-2], numbers[-1]) if len(numbers) >= 2 else None


def _flat(settings: Any, path: str = '') -> Iterator[Tuple[str, Any]]:
    """Yields the dotted name and the value of each of nested settings."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from _flat(value, f'{path}.{key}' if path else str(key))
    elif isinstance(settings, (list, tuple)) and settings:
        for place, value in enumerate(settings):
            yield from _flat(value, f'{path}.{place}')
    else:
        yield path, settings


def _differences(before: Iterator[Tuple[str, Any]], after: Iterator[Tuple[str, Any]]) -> Iterator[str]:
    old, new = dict(before), dict(after)
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield f"{key}: {new.get(key, 'not set')} (was {old.get(key, 'not set')})"


def remembered(path: Path, key: dict, compute: Callable[[], Any]) -> Any:
    """Returns the cached result if the file has one for this key; otherwise computes it and writes it to the file."""
    key = json.loads(json.dumps(key))
    try:
        content = json.loads(path.read_text())
        if content['key'] == key:
            return content['value']
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(key=key, value=value), indent=1) + '\n')
    return json.loads(json.dumps(value))


def machine() -> str:
    """Returns the name of the CPU or GPU on which training runs, and the versions of PyTorch and Python."""
    from mmlk.ops.benchmark import describe
    return describe(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))


def versions() -> Dict[str, str]:
    """Returns the versions of the packages on which results depend."""
    modules = [mmlk, torch, np, mmengine, mmcv]
    with suppress(ImportError):
        import mmseg
        modules.append(mmseg)
    with suppress(ImportError):
        import mmdet
        modules.append(mmdet)
    return dict(python=platform.python_version(), **{module.__name__: module.__version__ for module in modules})


def accuracy(entries: Sequence[ComparedModel], runs: Sequence[Run], root: Path) -> Tuple[Dict[str, Column],
                                                                                 Dict[str, Dict[str, Cell]]]:
    """Collects the accuracies of the models: published, measured with this toolbox, and of these runs.

    Args:
        entries: The models.
        runs: The finished runs.
        root: The folder of the model zoo.

    Returns:
        The columns by key, and the cells of each model by the same keys.
    """
    cells: Dict[str, Dict[str, Cell]] = {entry.name: {} for entry in entries}
    columns: Dict[str, Column] = {}

    def put(entry: ComparedModel, metric: str, data: str, values: Sequence[float], origin: str, detail: str) -> None:
        key = f'{metric}, {data}, {origin}'
        elsewhere = '' if data == entry.data else f' on {data}'
        columns[key] = Column(f'{metric} (%){elsewhere}, {origin}', 2)
        cells[entry.name][key] = Cell(tuple(values), origin, detail)

    rows = {row['Name']: row for row in zoo.rows(zoo.read(root))}
    for entry in entries:
        own = [run for run in runs if run.entry is entry]
        for metric, (key, factor) in METRICS[entry.task].items():
            values = [run.state['metrics'][key] * factor for run in own if key in run.state['metrics']]
            if values:
                put(entry, metric, entry.data, values, *_origin(entry, own))
        row = rows.get(entry.stem, {})
        for kind, called in zoo.KINDS.items():
            for result in row.get(kind) or []:
                source = result.get('Source') or row.get('Published', {}).get('Source', '')
                for metric in (name for name in zoo.METRICS if name in result['Metrics']):
                    put(entry, metric, result['Dataset'], [result['Metrics'][metric]], called,
                        f"{source} (configs/metafiles; pretraining: {row['Metadata']['Pretraining']})")
    return columns, cells


def _origin(entry: ComparedModel, runs: Sequence[Run]) -> Tuple[str, str]:
    where = '; '.join(dict.fromkeys(run.state['machine'] for run in runs))
    if runs[0].seed is None:
        return 'tested here', f'checkpoint {entry.checkpoint} on {entry.data}, on {where}'
    seeds = ', '.join(str(run.seed) for run in runs)
    spread = f'seed {seeds}' if len(runs) == 1 else f'seeds {seeds}, mean and sample standard deviation'
    budget, unit = training_length(entry.cfg)
    weights = weights_of(entry.cfg.model.backbone)
    start = f'from the weights {weights}' if weights else 'from scratch'
    if scoped_name(entry.cfg.model) == 'mmlk.FrozenEncoderDecoder':
        start += f', with a frozen backbone ({CAUTION})'
    return 'trained here', f"by the row's config {start} on {entry.data}, {budget} {unit}, {spread}, on {where}"


def compare_latency(entries: Sequence[ComparedModel], part: str, size: Tuple[int, int], turns: int,
                    device: torch.device, tick: Callable[[str, int], object]) -> Dict[str, dict]:
    """Measures the latency of inference of all models in one process, with merged branches.

    Returns:
        :meth:`latency.LatencyRow.to_dict` of each model, by its name.
    """
    networks, modules = [], []
    for entry in entries:
        networks.append(latency.latency_from_config(entry.cfg, entry.name, part))
        torch.manual_seed(0)
        modules.append(networks[-1].build().to(device))
    variant = latency.Variant(merged=True)
    rows = latency.measure_latency(networks, modules, [variant], 'inference', size, 1, device, turns, tick=tick)
    return {row.name: row.to_dict() for row in rows}


def measure_model_erf(entry: ComparedModel, checkpoint: Optional[str], images: Sequence[Path], size: int, device: str,
                      out: Path, track: Callable) -> Tuple[dict, erf.ReceptiveField]:
    """Measures the effective receptive field of a backbone's last stage, for a checkpoint or for random weights.

    The mean scores are written to ``out`` with the suffix .npy.

    Raises:
        ValueError: It cannot be measured. The message says why.
    """
    from mmlk.weights import load

    def compute() -> dict:
        torch.manual_seed(0)
        network = erf.erf_from_config(entry.cfg, initialise=checkpoint is None)
        if checkpoint:
            load(network.backbone, checkpoint)
        stage, _ = network.check(size)
        pictures = [read_image(path, size, network.channels) for path in images]
        field = erf.measure_erf(network, track(pictures), stage, device)
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out.with_suffix('.npy'), field.scores)
        return dict(erf.summary(field), stage=stage)

    weights = checkpoint and [checkpoint, *_stamp(Path(checkpoint))]
    key = dict(model=repr(entry.cfg.model), checkpoint=weights, size=size,
               images=[[path.name, *_stamp(path)] for path in images])
    if not out.with_suffix('.npy').is_file():
        out.with_suffix('.json').unlink(missing_ok=True)
    found = remembered(out.with_suffix('.json'), key, compute)
    return found, erf.ReceptiveField(np.load(out.with_suffix('.npy')), found['images'], found['skipped'])


def _stamp(path: Path) -> Tuple[int, int]:
    """Returns the size and the modification time of a file, to detect that it was overwritten."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def default_size(entries: Sequence[ComparedModel], root: Path) -> Tuple[int, int]:
    """Returns height and width at which all models are measured: the size of the zoo's counts, or the training crop.

    Raises:
        ValueError: The models have different sizes.
    """
    rows = {row['Name']: row for row in zoo.rows(zoo.read(root))}
    for sizes in ([zoo.image_size(rows[entry.stem]) for entry in entries if entry.stem in rows],
                  [tuple(entry.cfg.crop_size) for entry in entries if 'crop_size' in entry.cfg]):
        if len(sizes) == len(entries) and len(set(sizes)) == 1:
            height, width = sizes[0]
            return height, width
    raise ValueError('the configs have no image size in common; name one with --shape WIDTHxHEIGHT')
