"""Latency, throughput and peak memory of networks, several of them interleaved in one run.

Weights are random, for time does not depend on them, but for what a detector finds: with random weights it keeps few
boxes or none, so its ``predict`` runs every proposal through the box head and hardly any box through the mask head.

What is timed, on a random image that is on the device already, preprocessed:

- part 'backbone', inference: the forward, to all maps that the head takes;
- part 'backbone', training: forward, the sum of the maps' mean squares in place of a loss, and backward;
- part 'model', inference: ``predict`` of a segmentor or detector, by its config's ``test_cfg`` and to the end;
- part 'model', training: the model's losses on random annotations, and backward.

Variants 'optimized' (mmlk.deploy.optimize), 'onnxruntime' and 'openvino' only infer. Both runtimes run the same ONNX
file: the network as ``mmlk export`` writes it, merged and with BatchNorm folded, for this batch and size of image, on
preprocessed images. With one of the three among the variants, inference of part 'model' ends for every variant where
that file ends, so that all do the same work: at a segmentor's logits in the size of the image, at the maps of a
one-stage detector's head, at the maps of any other detector's neck.

Both runtimes have as many threads as PyTorch. onnxruntime has them in one pool, and its spinning is off: by default its
threads wait busily after a call, which disturbs the call that is timed next. OpenVINO has one stream, the hint LATENCY,
its precision set to f32 or bf16, and no cache of models. The threads of OpenVINO and PyTorch may wait busily for some
milliseconds, so each timed call of less than two seconds follows an untimed one of the same variant.

The largest difference is that of a variant's outputs from those of the network in fp32, not merged, in PyTorch, on the
same image. Of several outputs it is of the one whose difference is largest relative to its largest absolute value, and
both figures are given. Training has none, nor have the boxes that a detector predicts.

No optimizer step is included, whose cost depends on the number of parameters alone. What a config says of frozen stages
and of recomputing activations (``with_cp``) holds. Memory is what a call holds at most beyond what stood before it:
activations, gradients and workspace, no weights. It is not told of the two runtimes, which keep theirs between calls.
"""
import functools
import itertools
import math
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlk.analysis import zoo
from mmlk.engine.network import build_network, check_backbone, in_channels
from mmlk.ops import benchmark
from mmlk.reparam import MergeableBranches, merge

from .palette import LABEL, Point, add_panels, looks, name_points, rows_height, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS, MODES = ('backbone', 'model'), ('inference', 'training')
#: What makes a variant, alone or joined by ``+``; 'fp32' is none of them.
SWITCHES = ('merged', 'amp', 'compiled')
#: What runs a network in place of its own forward, in inference.
RUNTIMES = ('optimized', 'onnxruntime', 'openvino')
HALF = ('optimized', 'openvino')  # which of them can compute in bfloat16
ANNOTATED_BOXES = 8  # on each image that a detector learns from


class Variant(NamedTuple):
    """A way to run a network.

    Args:
        merged: Branches merged (inference only).
        amp: Autocast to half precision, which is float16 on a GPU and bfloat16 on a CPU.
        compiled: ``torch.compile``.
        runtime: One of ``RUNTIMES``, in place of the three above.
        bf16: The runtime computes in bfloat16.
    """
    merged: bool = False
    amp: bool = False
    compiled: bool = False
    runtime: Optional[str] = None
    bf16: bool = False

    @classmethod
    def parse(cls, text: str) -> 'Variant':
        """'fp32', switches joined by ``+``, as 'merged+amp', or a runtime, as 'openvino' and 'openvino+bf16'.

        Raises:
            ValueError: There is no such variant.
        """
        names = [] if text == 'fp32' else text.split('+')
        if not set(names) <= {*SWITCHES, *RUNTIMES, 'bf16'}:
            raise ValueError(f"unknown variant '{text}'; there are fp32, {', '.join(SWITCHES)}, and these joined by +; "
                             f"{', '.join(RUNTIMES)}, and +bf16 behind {' or '.join(HALF)}")
        runtimes = [name for name in names if name in RUNTIMES]
        if runtimes and (len(runtimes) > 1 or set(names) & set(SWITCHES)):
            raise ValueError(f"unknown variant '{text}'; {', '.join(RUNTIMES)} merge branches themselves, and combine "
                             f"with bf16 only, behind {' or '.join(HALF)}")
        if 'bf16' in names and not set(runtimes) & set(HALF):
            raise ValueError(f"unknown variant '{text}'; bf16 stands behind {' or '.join(HALF)} only"
                             + ('' if runtimes else "; PyTorch's own forward has amp, which is bfloat16 on a CPU"))
        return cls(**dict.fromkeys((name for name in names if name in SWITCHES), True),
                   runtime=runtimes[0] if runtimes else None, bf16='bf16' in names)

    def check(self, mode: str, device: torch.device) -> None:
        """Raise a ValueError if this variant has no such mode, or does not run on the device."""
        if self.runtime and mode == 'training':
            raise ValueError(f"variant '{self}' is of inference only, and the mode is training")
        if self.runtime in ('onnxruntime', 'openvino') and device.type != 'cpu':
            raise ValueError(f"variant '{self}' runs on a CPU only, and the device is {device}")

    def __str__(self) -> str:
        names = [name for name, on in zip(SWITCHES, self) if on] + [self.runtime] * bool(self.runtime)
        return '+'.join(names + ['bf16'] * self.bf16) or 'fp32'


#: Returns a call that runs a network in a runtime, and gives its outputs. It takes the network, as :class:`Outputs`,
#: its images, and whether to compute in bfloat16. It may raise any exception, which is then the reason of a failed row.
RuntimeBuilder = Callable[['Outputs', Tensor, bool], Callable[[], Sequence[Tensor]]]


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


class Outputs(nn.Module):
    """A network from preprocessed images to the outputs that a file of it has.

    Args:
        network: The network. It is not copied.
        kind: As in :class:`LatencyNetwork`.

    Shape:
        Input: (N, C, H, W). Output, a tuple: of a backbone all its maps, of a segmentor the logits, (N, classes, H, W),
        of a one-stage detector the maps of its head, of any other detector those of its neck.
    """

    def __init__(self, network: nn.Module, kind: str):
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        if self.kind == 'backbone':
            return tuple(tensors_in(self.network(images)))
        if self.kind == 'segmentor':
            size = images.shape[2:]
            facts = dict(img_shape=size, pad_shape=size, ori_shape=size)
            return (self.network.encode_decode(images, [facts] * len(images)), )
        if hasattr(getattr(self.network, 'bbox_head', None), 'prior_generator'):
            return tuple(tensors_in(self.network(images, mode='tensor')))
        return tuple(tensors_in(self.network.extract_feat(images)))


def tensors_in(outputs: Any) -> List[Tensor]:
    """Returns the tensors of nested lists and tuples."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors_in(part)] if isinstance(outputs, (tuple, list)) else []


class Difference(NamedTuple):
    """How far a variant's outputs are from the network's own. Both figures are NaN if an output is.

    Args:
        absolute: The largest absolute difference of the output that differs most.
        relative: The same, divided by the largest absolute value that the output has in the network itself.
    """
    absolute: float
    relative: float

    @classmethod
    def between(cls, found: Sequence[Tensor], expected: Sequence[Tensor]) -> 'Difference':
        """Of the output that has the largest relative difference.

        Raises:
            ValueError: The outputs are not as many as expected, or one has another shape.
        """
        shapes, right = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, expected)]
        if shapes != right:
            raise ValueError(f'the outputs have the shapes {shapes}, and those of the network itself {right}')
        pairs = []
        for ours, theirs in zip(found, expected):
            absolute = (ours.detach().float() - theirs.float()).abs().max().item()
            pairs.append(cls(absolute, absolute / max(theirs.abs().max().item(), 1e-30)))
        return max(pairs, key=lambda pair: math.inf if math.isnan(pair.relative) else pair.relative)


class Job(NamedTuple):
    """One call to measure.

    Args:
        network: What is measured.
        variant: How it is run.
        module: What it runs or, in a runtime, what that was built from.
        call: Runs it once.
        reference: Runs the network itself in fp32, in inference. All jobs of a network have the same one.
    """
    network: LatencyNetwork
    variant: Variant
    module: nn.Module
    call: Callable[[], object]
    reference: Callable[[], object]

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
        memory: Peak memory of a call in bytes; None if the system does not tell, and of onnxruntime and OpenVINO.
        failed: Why there are neither times nor memory; None if there are.
        difference: Of the outputs from the network's own in fp32; None if they are not compared.
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
    difference: Optional[Difference] = None

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
        difference = self.difference and {name: value if math.isfinite(value) else None  # JSON has no NaN
                                          for name, value in self.difference._asdict().items()}
        return dict(facts, median_s=self.median, first_quartile_s=first, third_quartile_s=third, seconds=self.seconds,
                    images_per_second=self.throughput, peak_memory_bytes=self.memory, largest_difference=difference)


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
         batch: int, device: torch.device, runtimes: Mapping[str, RuntimeBuilder] = {}) -> Iterator[Job]:
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
        runtimes: Those of the variants, by name.
    """
    mergeable = any(isinstance(m, MergeableBranches) and not m.merged for m in module.modules())
    if mode == 'training':
        variants = [variant._replace(merged=False) for variant in variants]
    elif not mergeable:
        variants = [v for v in variants if not (v.merged and v._replace(merged=False) in variants)]
    image = torch.randn(batch, network.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    samples = _annotations(network, module, batch, size, device)
    kind, outputs = network.kind, Outputs(module, network.kind)
    if any(variant.runtime for variant in variants):
        kind = 'backbone'  # every variant ends at the outputs of a file
    outputs.train(mode == 'training')  # and the module in it
    subject = module if kind == network.kind else outputs
    reference = _call(kind, subject, module, mode, image, samples, amp=False)
    merged = None
    for variant in dict.fromkeys(variants):
        if variant.runtime:
            build = functools.partial(runtimes[variant.runtime], outputs, image, variant.bf16)
            yield Job(network, variant, module, _at_first_call(build), reference)
            continue
        used = module
        if variant.merged and mergeable:
            try:
                used = merged = merge(module) if merged is None else merged
            except ValueError as error:  # it has norms that nothing can be folded into
                yield Job(network, variant, module, functools.partial(_refuse, error), reference)
                continue
        used.train(mode == 'training')
        run = used if kind == network.kind else Outputs(used, network.kind).eval()
        run = torch.compile(run) if variant.compiled else run
        yield Job(network, variant, used, _call(kind, run, used, mode, image, samples, variant.amp), reference)


def _at_first_call(build: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """A call of what ``build`` returns, which is built when it is first needed."""
    built = []

    def call() -> object:
        if not built:
            built.append(build())
        return built[0]()

    return call


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
                    warmup: int = 4, tick: Callable[[str, int], object] = lambda text, total: None,
                    runtimes: Mapping[str, RuntimeBuilder] = {}) -> List[LatencyRow]:
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
        warmup: Calls before that, and at least one; three at least settle which backend runs a large kernel.
        tick: Called as things go, once a job after its warm-up and once each time it was timed, with what was done and
            how many times it will have been called in the end.
        runtimes: Those of the variants, by name: ``mmlk.deploy.runtimes.builders`` gives them.

    Returns:
        A row for each job. One that failed in its warm-up says so, and the others go on.

    Raises:
        ValueError: A variant does not have the mode, or does not run on the device. Nothing has been measured.
    """
    for variant in variants:
        variant.check(mode, device)
    listed = [job for network, module in zip(networks, modules)
              for job in jobs(network, module, variants, mode, size, batch, device, runtimes)]
    rows, able = [], []
    compared, expected = None, []
    for job in listed:
        parameters = sum(p.numel() for p in job.module.parameters())
        recomputes = any(getattr(m, 'with_cp', False) for m in job.module.modules()) and mode == 'training'
        row = LatencyRow(job.network.name, str(job.variant), mode, batch, parameters, recomputes, [])
        rows.append(row)
        if mode == 'inference' and job.reference is not compared:
            compared, expected = job.reference, _reference(job)
        try:
            row.difference = _warm_up(job.call, warmup, expected)
            able.append((job, row))
        except Exception as error:  # out of memory, a compiler's, or of an operator that lacks the type
            row.failed = f'{type(error).__name__}: {error}'.split('\n')[0][:300]
        tick(f'{mode}: {job.label} warmed up', len(listed) * (turns + 1))
    expected = []  # of a large image it is many bytes
    total, done = len(listed) + len(able) * turns, itertools.cycle(job.label for job, _ in able)
    samples = benchmark.turns({index: job.call for index, (job, _) in enumerate(able)}, device, most=turns, least=turns,
                              tick=lambda: tick(f'{mode}: {next(done)}', total))
    for (job, row), seconds in zip(able, samples.values()):
        row.seconds = seconds
        if job.variant.runtime not in ('onnxruntime', 'openvino'):
            row.memory = benchmark.peak_memory(job.call, device)
    return rows


def _warm_up(call: Callable[[], object], times: int, expected: Sequence[Tensor]) -> Optional[Difference]:
    """Call once at least, and return how far the last result is from what is expected, unless that is nothing."""
    for _ in range(times - 1):
        call()
    result = call()
    return Difference.between(_outputs(result), expected) if expected else None


def _outputs(result: Any) -> List[Tensor]:
    """What is compared of the result of a call; nothing of a detector's boxes, which are not as many each time."""
    samples = [] if isinstance(result, Tensor) else list(result)
    if samples and hasattr(samples[0], 'pred_sem_seg'):
        return [sample.seg_logits.data for sample in samples]
    return [] if samples and hasattr(samples[0], 'pred_instances') else tensors_in(result)


def _reference(job: Job) -> List[Tensor]:
    """The outputs of a job's network in fp32; none if they are not compared, or cannot be computed."""
    try:
        return _outputs(job.reference())
    except Exception:  # the network's own jobs fail by the same error, and tell it
        return []


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

    Beside a bar stands the time and, where outputs were compared, the largest difference relative to the largest value.

    Args:
        rows: Of :func:`measure_latency`; those that failed are left out.
        results: Of networks by name. A panel for each metric shows the inference of those that have it.
        title: Of the figure: the machine and the settings.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if not row.failed]
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    shown = {row.name for row in rows if row.mode == 'inference'}
    metrics = list(dict.fromkeys(result.metric for name, result in results.items() if name in shown))
    look = looks(row.name for row in rows)
    bars_of = {mode: [row for row in rows if row.mode == mode][::-1] for mode in modes}  # the first at the top
    labels = {mode: [wrapped(row.label, LABEL) for row in bars] for mode, bars in bars_of.items()}
    panels = len(modes) + len(metrics)
    height = max(3.4, 1.4 + max(map(rows_height, labels.values())))
    figure = Figure(figsize=(10.4, (1 + panels) // 2 * height), layout='constrained')
    axes = add_panels(figure, panels)
    for axis, (mode, bars) in zip(axes, bars_of.items()):
        middle = [row.median * 1e3 for row in bars]
        spread = [[abs(row.quartiles[side] - row.median) * 1e3 for row in bars] for side in (0, 1)]
        axis.barh(range(len(bars)), middle, xerr=spread, color=[look[row.name].colour for row in bars], alpha=0.85,
                  error_kw=dict(ecolor='0.2', capsize=3))
        for place, (row, value) in enumerate(zip(bars, middle)):
            text = f' {value:.3g}' if value < 1000 else f' {value:.0f}'
            if row.difference and row.variant != 'fp32':
                text += f', differs by {row.difference.relative:.0e}'
            axis.text(row.quartiles[1] * 1e3, place, text, verticalalignment='center', fontsize=8)
        axis.set_yticks(range(len(bars)), labels[mode], fontsize=9)
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
    figure.suptitle(wrapped(title, 120), fontsize=9)
    name_points(figure, named)
    return figure
