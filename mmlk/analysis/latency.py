"""Latency, throughput and peak memory of networks, several of them interleaved in one run.

Weights are random, for time does not depend on them, but for what a detector finds: with random weights it keeps few
boxes or none, so its ``predict`` runs every proposal through the box head and hardly any box through the mask head.

What is timed, on a random image that is on the device already, preprocessed:

- part 'backbone', inference: the forward, to all maps that the head takes;
- part 'backbone', training: forward, the sum of the maps' mean squares in place of a loss, and backward;
- part 'model', inference: ``predict`` of a segmentor or detector, by its config's ``test_cfg`` and to the end;
- part 'model', training: the model's losses on random annotations, and backward.

No optimizer step is included, whose cost depends on the number of parameters alone. What a config says of frozen stages
and of recomputing activations (``with_cp``) holds. Memory is what a call holds at most beyond what stood before it:
activations, gradients and workspace, no weights.
"""
import functools
import itertools
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlk.analysis import zoo
from mmlk.engine.network import build_network, check_backbone, in_channels
from mmlk.ops import benchmark
from mmlk.reparam import MergeableBranches, merge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS, MODES = ('backbone', 'model'), ('inference', 'training')
#: What makes a variant, alone or joined by ``+``; 'fp32' is none of them.
SWITCHES = ('merged', 'amp', 'compiled')
ANNOTATED_BOXES = 8  # on each image that a detector learns from


class Variant(NamedTuple):
    """A way to run a network: branches merged (inference only), autocast to half precision, ``torch.compile``.

    Autocast is to float16 on a GPU and to bfloat16 on a CPU.
    """
    merged: bool = False
    amp: bool = False
    compiled: bool = False

    @classmethod
    def parse(cls, text: str) -> 'Variant':
        """'fp32', or switches joined by ``+``, as 'merged+amp'.

        Raises:
            ValueError: There is no such variant.
        """
        names = [] if text == 'fp32' else text.split('+')
        if not set(names) <= set(SWITCHES):
            raise ValueError(f"unknown variant '{text}'; there are fp32, {', '.join(SWITCHES)}, and these joined by +")
        return cls(**dict.fromkeys(names, True))

    def __str__(self) -> str:
        return '+'.join(name for name, on in zip(SWITCHES, self) if on) or 'fp32'


class LatencyNetwork(NamedTuple):
    """A network to measure.

    Args:
        name: In the report.
        build: Returns the network with its branches not merged.
        kind: 'backbone', 'segmentor' or 'detector'.
        in_channels: Channels of the image.
    """
    name: str
    build: Callable[[], nn.Module]
    kind: str = 'backbone'
    in_channels: int = 3


class Job(NamedTuple):
    """One call to measure; ``module`` is what it runs."""
    network: LatencyNetwork
    variant: Variant
    module: nn.Module
    call: Callable[[], object]

    @property
    def label(self) -> str:
        return f'{self.network.name} ({self.variant})'


@dataclass
class LatencyRow:
    """What was measured of one network in one variant and mode.

    Args:
        name: Of the network.
        variant: Of the network, as text.
        mode: 'inference' or 'training'.
        batch: Images in a call.
        parameters: Number of parameters.
        recomputes: Whether activations are recomputed in backward (``with_cp``).
        seconds: The time of a call, in each turn.
        memory: Peak memory of a call in bytes; None if the system does not tell.
        failed: Why there are neither times nor memory; None if there are.
    """
    name: str
    variant: str
    mode: str
    batch: int
    parameters: int
    recomputes: bool
    seconds: List[float]
    memory: Optional[int] = None
    failed: Optional[str] = None

    @property
    def label(self) -> str:
        return f'{self.name} ({self.variant})'

    @property
    def median(self) -> float:
        """Seconds of a batch."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> Tuple[float, float]:
        """Seconds between which the middle half of the turns lie."""
        if len(self.seconds) == 1:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return first, third

    @property
    def throughput(self) -> float:
        """Images a second."""
        return self.batch / self.median

    def relative_to(self, other: 'LatencyRow') -> float:
        """Time over that of another row of the same run: the median of what the turns say, each in itself."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.seconds, other.seconds))

    def to_dict(self) -> dict:
        """For a JSON file."""
        facts = dict(name=self.name, variant=self.variant, mode=self.mode, batch=self.batch,
                     parameters=self.parameters, recomputes_activations=self.recomputes)
        if self.failed:
            return dict(facts, failed=self.failed)
        first, third = self.quartiles
        return dict(facts, median_s=self.median, first_quartile_s=first, third_quartile_s=third, seconds=self.seconds,
                    images_per_second=self.throughput, peak_memory_bytes=self.memory)


class KnownResult(NamedTuple):
    """A known accuracy of a config.

    Args:
        metric: The name of the metric and of the data set.
        value: In percent.
        kind: One of the values of ``zoo.KINDS``, such as 'published'.
        source: Where the value is from.
        pretraining: Of the backbone.
    """
    metric: str
    value: float
    kind: str
    source: str
    pretraining: str


def latency_from_config(cfg: Config, name: str, part: str = 'backbone') -> LatencyNetwork:
    """The backbone of a config, or its whole model, with random weights.

    Raises:
        ValueError: The config has no backbone, or is neither a segmentor's nor a detector's and ``part`` is 'model'.
    """
    check_backbone(cfg)
    scope = cfg.get('default_scope')
    kind = 'backbone'
    if part == 'model':
        kind = {'mmseg': 'segmentor', 'mmdet': 'detector'}.get(scope)
        if kind is None:
            raise ValueError("part 'model' is of segmentors and detectors, whose configs have default_scope = 'mmseg' "
                             f"or 'mmdet'; this one has {scope!r}")
    build = functools.partial(build_network, cfg, part, merged=False)
    return LatencyNetwork(name, build, kind, in_channels(cfg))


def latency_from_timm(name: str, size: Tuple[int, int]) -> LatencyNetwork:
    """A model of timm as a backbone: its maps of all stages, with random weights.

    Raises:
        ValueError: timm has no such model.
    """
    import timm
    if not timm.is_model(name):
        raise ValueError(f"timm has no model '{name}'")
    pretrained = timm.get_pretrained_cfg(name)
    options = {'img_size': size} if pretrained and pretrained.fixed_input_size else {}
    return LatencyNetwork(name, lambda: timm.create_model(name, features_only=True, **options))


def jobs(network: LatencyNetwork, module: nn.Module, variants: Sequence[Variant], mode: str, size: Tuple[int, int],
         batch: int, device: torch.device) -> Iterator[Job]:
    """Yield the calls to measure of one network.

    Variants that would be the same are measured once: training has no merged form, and merging changes nothing in a
    network without parallel branches.

    Args:
        network: What ``module`` was built from.
        module: The network on the device, with its branches not merged.
        variants: Those to measure.
        mode: 'inference' or 'training'.
        size: Height and width of the image in pixels.
        batch: Images in a call.
        device: A CPU or GPU.
    """
    mergeable = any(isinstance(m, MergeableBranches) and not m.merged for m in module.modules())
    if mode == 'training':
        variants = [variant._replace(merged=False) for variant in variants]
    elif not mergeable:
        variants = [v for v in variants if not (v.merged and v._replace(merged=False) in variants)]
    image = torch.randn(batch, network.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    samples = _annotations(network, module, batch, size, device)
    merged = None
    for variant in dict.fromkeys(variants):
        used = module
        if variant.merged and mergeable:
            try:
                used = merged = merge(module) if merged is None else merged
            except ValueError as error:  # it has norms that nothing can be folded into
                yield Job(network, variant, module, functools.partial(_refuse, error))
                continue
        used.train(mode == 'training')
        run = torch.compile(used) if variant.compiled else used
        yield Job(network, variant, used, _call(network.kind, run, used, mode, image, samples, variant.amp))


def _refuse(error: Exception) -> None:
    raise error


def _call(kind: str, run: Callable, module: nn.Module, mode: str, image: Tensor, samples: Optional[list],
          amp: bool) -> Callable[[], object]:
    """``run`` is ``module``, compiled or not."""
    device = image.device.type
    dtype = torch.float16 if device == 'cuda' else torch.bfloat16

    def precision():
        return torch.autocast(device, dtype) if amp else nullcontext()

    def infer():
        with torch.no_grad(), precision():
            return run(image) if kind == 'backbone' else run(image, samples, mode='predict')

    def learn():
        with precision():
            if kind == 'backbone':
                maps = run(image)
                loss = sum(out.float().square().mean() for out in ([maps] if isinstance(maps, Tensor) else maps))
            else:
                loss, _ = module.parse_losses(run(image, samples, mode='loss'))
        loss.backward()
        module.zero_grad(set_to_none=True)  # at the end, for what stands before a call is not counted as its memory

    return infer if mode == 'inference' else learn


def _annotations(network: LatencyNetwork, module: nn.Module, batch: int, size: Tuple[int, int],
                 device: torch.device) -> Optional[list]:
    """Random ground truth of each image, as the toolboxes take it; None for a backbone."""
    if network.kind == 'backbone':
        return None
    from mmengine.structures import InstanceData, PixelData
    height, width = size
    facts = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(batch):
        if network.kind == 'segmentor':
            from mmseg.structures import SegDataSample
            labels = torch.randint(module.num_classes, (1, height, width), generator=generator)
            sample = SegDataSample(metainfo=facts, gt_sem_seg=PixelData(data=labels))
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks
            corners = torch.rand(ANNOTATED_BOXES, 2, generator=generator) / 2
            sides = 0.1 + 0.4 * torch.rand(ANNOTATED_BOXES, 2, generator=generator)
            boxes = torch.cat((corners, corners + sides), 1) * torch.tensor([width, height, width, height])
            masks = torch.zeros(ANNOTATED_BOXES, height, width, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
                mask[top:bottom + 1, left:right + 1] = 1
            labels = torch.zeros(ANNOTATED_BOXES, dtype=torch.long)
            found = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks.numpy(), height, width))
            none = InstanceData(bboxes=boxes[:0], labels=labels[:0])
            sample = DetDataSample(metainfo=dict(facts, img_id=index), gt_instances=found, ignored_instances=none)
        samples.append(sample.to(device))
    return samples


def measure_latency(networks: Sequence[LatencyNetwork], modules: Sequence[nn.Module], variants: Sequence[Variant],
                    mode: str, size: Tuple[int, int], batch: int, device: torch.device, turns: int = 10,
                    warmup: int = 4, tick: Callable[[str, int], object] = lambda text, total: None
                    ) -> List[LatencyRow]:
    """Measure networks, all their variants taking turns.

    Args:
        networks: What to measure.
        modules: What their ``build`` gave, on the device. Their gradients and their mode change, weights do not, but
            BatchNorm's statistics in training.
        variants: As :meth:`Variant.parse` gives them.
        mode: One of ``MODES``.
        size: Height and width of the image.
        batch: Images of a call.
        device: A CPU or GPU.
        turns: How often each is timed.
        warmup: Calls before that; three at least settle which backend runs a large kernel.
        tick: Called as things go, once a job after its warm-up and once each time it was timed, with what was done and
            how many times it will have been called in the end.

    Returns:
        A row for each job. One that failed in its warm-up says so, and the others go on.
    """
    listed = [job for network, module in zip(networks, modules)
              for job in jobs(network, module, variants, mode, size, batch, device)]
    rows, able = [], []
    for job in listed:
        parameters = sum(p.numel() for p in job.module.parameters())
        recomputes = any(getattr(m, 'with_cp', False) for m in job.module.modules()) and mode == 'training'
        row = LatencyRow(job.network.name, str(job.variant), mode, batch, parameters, recomputes, [])
        rows.append(row)
        try:
            for _ in range(warmup):
                job.call()
            able.append((job, row))
        except Exception as error:  # out of memory, a compiler's, or of an operator that lacks the type
            row.failed = f'{type(error).__name__}: {error}'.split('\n')[0][:300]
        tick(f'{mode}: {job.label} warmed up', len(listed) * (turns + 1))
    total, done = len(listed) + len(able) * turns, itertools.cycle(job.label for job, _ in able)
    samples = benchmark.turns({index: job.call for index, (job, _) in enumerate(able)}, device, most=turns, least=turns,
                              tick=lambda: tick(f'{mode}: {next(done)}', total))
    for (job, row), seconds in zip(able, samples.values()):
        row.seconds = seconds
        row.memory = benchmark.peak_memory(job.call, device)
    return rows


def known_result(name: str, root: Path) -> Optional[KnownResult]:
    """The accuracy that the zoo at ``root`` has of a config, published before re-evaluated before trained here."""
    for row in zoo.rows(zoo.read(root)):
        for kind, called in zoo.KINDS.items() if row['Name'] == name else ():
            for result in row.get(kind) or []:
                for metric in ('mIoU', 'box AP'):
                    if metric in result['Metrics']:
                        source = result.get('Source') or row.get('Published', {}).get('Source', '')
                        return KnownResult(f"{metric} on {result['Dataset']}", result['Metrics'][metric], called,
                                           source, row['Metadata'].get('Pretraining', ''))
    return None


def plot_latency(rows: Sequence[LatencyRow], results: Mapping[str, KnownResult], title: str) -> 'Figure':
    """Bars of time for each mode, the middle half of the turns as whiskers; accuracy against latency where known.

    Args:
        rows: Of :func:`measure_latency`; those that failed are left out.
        results: Of networks by name. A panel for each metric shows the inference of those that have it.
        title: Of the figure: the machine and the settings.
    """
    from matplotlib.figure import Figure

    from mmlk.analysis.palette import Point, add_panels, looks, name_points
    rows = [row for row in rows if not row.failed]
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    shown = {row.name for row in rows if row.mode == 'inference'}
    metrics = list(dict.fromkeys(result.metric for name, result in results.items() if name in shown))
    look = looks(row.name for row in rows)
    most = max(sum(row.mode == mode for row in rows) for mode in modes)
    panels = len(modes) + len(metrics)
    figure = Figure(figsize=(10.4, (1 + panels) // 2 * max(3.4, 1.4 + 0.34 * most)), layout='constrained')
    axes = add_panels(figure, panels)
    for axis, mode in zip(axes, modes):
        bars = [row for row in rows if row.mode == mode][::-1]  # the first at the top
        middle = [row.median * 1e3 for row in bars]
        spread = [[abs(row.quartiles[side] - row.median) * 1e3 for row in bars] for side in (0, 1)]
        axis.barh(range(len(bars)), middle, xerr=spread, color=[look[row.name].colour for row in bars], alpha=0.85,
                  error_kw=dict(ecolor='0.2', capsize=3))
        for place, (row, value) in enumerate(zip(bars, middle)):
            axis.text(row.quartiles[1] * 1e3, place, f' {value:.3g}' if value < 1000 else f' {value:.0f}',
                      verticalalignment='center', fontsize=8)
        axis.set_yticks(range(len(bars)), [row.label for row in bars], fontsize=9)
        axis.set(xlabel='ms', title=f'{mode}, batch of {bars[0].batch}')
        axis.margins(x=0.18)
        axis.grid(axis='x', alpha=0.3)
    named = {}
    for axis, metric in zip(axes[len(modes):], metrics):
        points = [row for row in rows if row.mode == 'inference' and row.name in results
                  and results[row.name].metric == metric]
        named[axis] = []
        for row in points:
            colour, marker = look[row.name]
            x, y = row.median * 1e3, results[row.name].value
            axis.plot(x, y, marker, color=colour, fillstyle='full' if row.variant == 'fp32' else 'none')
            named[axis].append(Point(row.label, x, y, colour))
        kinds = ' or '.join(dict.fromkeys(results[row.name].kind for row in points))
        axis.set(xlabel='ms', ylabel=f'{metric}, {kinds}', title='accuracy against latency of inference')
        axis.grid(alpha=0.3)
        axis.margins(0.15)
    figure.suptitle(title, fontsize=9)
    name_points(figure, named)
    return figure
