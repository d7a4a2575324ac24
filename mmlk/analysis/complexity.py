"""Parameters and multiply-adds of backbones, segmentors and detectors, counted on the meta device.

What is counted is what the published tables count.

- One multiply-add is one operation ("FLOPs" in the papers). Convolutions, transposed ones and matrix products
  count, those of attention included; norms, activations, pooling, resizing and RoIAlign do not. A convolution
  with a (kh, kw) kernel and g groups on a (C, H, W) output costs H * W * C * kh * kw * C_in / g.
- A Fourier transform of a real map of n values, or its inverse, costs n * ceil(log2(n)) for each channel. A
  deformable convolution costs what a plain one of its shape does; its sampling is free, as RoIAlign's. DCNv3 and
  DCNv4 have no other cost than their sampling: five multiply-adds for each sample, as their authors count.
- A segmentor is counted without its auxiliary head, parameters and multiply-adds, which testing does not run.
- A two-stage detector, as mmdet 2.x counted it: the RPN on every level, 1000 proposals through each box stage
  and 100 through each mask stage.
- Papers that merge branches after training count the merged form: :func:`build_on_meta` makes it.
"""
import copy
import functools
import math
import re
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mmlk._torch_private import dispatch_mode
from mmlk.engine.network import network_settings
from mmlk.ops import deformable
from mmlk.ops.global_filter import multiply_adds as transform_multiply_adds

BOX_PROPOSALS = 1000
MASK_PROPOSALS = 100


def _terms(i1: Sequence[int], i2: Sequence[int], i3: Sequence[int], expand1: Sequence[int], expand2: Sequence[int],
           expand3: Sequence[int], sumdim: Sequence[int], *_, **__) -> int:
    """Of three tensors multiplied and summed, ``nn.Bilinear``'s: two are contracted first, over the last of the axes,
    and their product with the third over the others."""
    whole = []
    for sizes, axes in ((i1, expand1), (i2, expand2), (i3, expand3)):
        sizes = list(sizes)
        for axis in sorted(axes):
            sizes.insert(axis, 1)
        whole.append(sizes)
    sizes = [max(along) for along in zip(*whole)]
    return 2 * (math.prod(sizes) + math.prod(sizes) // sizes[sumdim[-1]])


# Operators of which PyTorch's counter knows nothing, in its unit, two to a multiply-add. Transforms are those of real
# maps; the inverse costs what the transform does.
FORMULAS = {
    torch.ops.aten.mv: lambda x, *_, **__: 2 * math.prod(x),
    torch.ops.aten.addmv: lambda _, x, *__, **___: 2 * math.prod(x),
    torch.ops.aten.dot: lambda x, *_, **__: 2 * math.prod(x),
    torch.ops.aten.vdot: lambda x, *_, **__: 2 * math.prod(x),
    torch.ops.aten.addr: lambda _, x, y, *__, **___: 2 * math.prod(x) * math.prod(y),
    torch.ops.aten.addbmm: lambda _, x, y, *__, **___: 2 * math.prod(x) * y[-1],
    torch.ops.aten._trilinear: _terms,
    torch.ops.aten._fft_r2c: lambda x, dim, *_, **__: 2 * transform_multiply_adds(x, dim),
    torch.ops.aten._fft_c2r: lambda x, dim, *_, out_shape, **__: 2 * transform_multiply_adds(out_shape, dim),
}

# Operators of ATen that cost nothing by the conventions, beside views and what works on each value: they make tensors,
# move, choose, sort or sum values, normalise, pool or resize. Names without the _ of those that work in place.
_FREE = re.compile('|'.join((
    r'(new_)?(empty|zeros|ones|full|rand|randn|randint|randperm)(_like|_strided|_permuted)*',
    r'arange|linspace|logspace|eye|scalar_tensor|tri[lu](_indices)?|bernoulli|normal|uniform|exponential|multinomial',
    r'clone|copy|_to_copy|lift|lift_fresh|lift_fresh_copy|contiguous|resize|resize_as|set|zero|fill|alias|detach',
    r'cat|stack|repeat|repeat_interleave|tile|flip|roll|rot90|unfold|im2col|col2im|diag_embed|_unsafe_view',
    r'(constant_pad_nd|(reflection|replication)_pad\dd|pixel_(un)?shuffle|channel_shuffle)',
    r'_?(unsafe_)?index(_put|_select|_fill|_copy|_add|_reduce)?|gather|take|put|nonzero|nonzero_static|embedding|where',
    r'scatter(_add|_reduce)?|(slice|select|diagonal|as_strided)_scatter|masked_(fill|select|scatter)|isin',
    r'sum|nansum|mean|prod|cum(sum|prod|max|min)|_cum\w+|logsumexp|logcumsumexp|a?max|a?min|aminmax|arg(max|min|sort)',
    r'std|var|std_mean|var_mean|norm|linalg_vector_norm|all|any|count_nonzero|median|nanmedian|mode|kthvalue|topk|sort',
    r'_?unique2?|unique_dim|unique_consecutive|bincount|histc|searchsorted|bucketize|equal|_local_scalar_dense',
    r'\w*batch_norm\w*|native_(layer|group)_norm|_fused_rms_norm|native_dropout|_weight_norm_interface|renorm',
    r'_?(log_)?softmax|_safe_softmax|_prelu_kernel|glu',
    r'_?(adaptive_)?(avg|max)_pool[123]d(_with_indices)?|fractional_max_pool\dd|max_unpool\dd',
    r'_?upsample_\w+|grid_sampler_\dd|_grid_sampler_2d_cpu_fallback|affine_grid_generator',
    r'\w+_copy|unsafe_split(_with_sizes)?|(un)?squeeze|t|transpose|as_strided|_stack|_chunk_cat|block_diag|trace',
    r'random|geometric|cauchy|log_normal|poisson|\w+_window|complex|polar|_unsafe_masked_index\w*|_masked_softmax',
    r'(leaky_|_add_)?relu|rrelu_with_noise|[ceg]?elu|hard(swish|sigmoid|tanh|shrink)|mish|soft(plus|shrink)|threshold',
    r'log_sigmoid_forward|_conj_physical|floor_divide',
    r'_assert_\w+|_functional_assert_\w+|sym_\w+|record_stream')))

# Modules whose weights their parents use: the output projection of attention, learned queries.
_READ_BY_OTHERS = ('NonDynamicallyQuantizableLinear', 'Embedding')


@dataclass(frozen=True)
class Complexity:
    """Counts of one model: ``parameters``, and ``macs``, multiply-adds for one image."""
    parameters: int
    macs: int

    def __str__(self) -> str:
        return f'{self.parameters / 1e6:.1f}M parameters, {self.macs / 1e9:.1f}G multiply-adds'


@dataclass(frozen=True)
class Node:
    """A module's counts, those of its ``children`` included; ``kind`` is its class, ``ran`` whether the model used it.

    What a module shares with one before it, parameters or a whole child, is counted there alone.
    """
    name: str
    kind: str
    parameters: int
    macs: int
    ran: bool
    children: Tuple['Node', ...] = ()

    def idle(self, path: str = '') -> Iterator[str]:
        """Outermost modules below this one with parameters that did not run: heads that no convention covers."""
        for child in self.children:
            if child.ran:
                yield from child.idle(f'{path}{child.name}.')
            elif child.parameters and child.kind not in _READ_BY_OTHERS:
                yield f'{path}{child.name}'

    def to_dict(self) -> dict:
        """For a JSON file; a leaf has no ``children``."""
        facts = dict(name=self.name, kind=self.kind, parameters=self.parameters, macs=self.macs)
        return dict(facts, children=[child.to_dict() for child in self.children]) if self.children else facts


class FormsLine(NamedTuple):
    """A line of two trees side by side: ``level`` 0 is the model; None where a form lacks the module."""
    level: int
    name: str
    training: Optional[Node]
    merged: Optional[Node]


def parse_size(text: str) -> Tuple[int, int]:
    """Height and width of an image given as ``'WIDTHxHEIGHT'``, the papers' order: '2048x512' gives (512, 2048).

    Raises:
        ValueError: The text is not two positive numbers with an x between.
    """
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise ValueError(f"a shape is WIDTHxHEIGHT in pixels, as 2048x512, got '{text}'")
    return int(found[2]), int(found[1])


def build_on_meta(cfg: Config, merged: bool = True) -> nn.Module:
    """The model of a config on the meta device: shapes without values.

    Args:
        cfg: A whole config, with ``model`` and ``default_scope``.
        merged: Build backbones of mmlk with their parallel branches merged. Others have none.

    Raises:
        ValueError: The config has no backbone.
    """
    settings = network_settings(cfg, merged=merged)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), _EmptyOnMeta():
        return MODELS.build(settings).to('meta')


def count(model: nn.Module, size: Tuple[int, int], in_channels: int = 3) -> Complexity:
    """Count a model on one image, by the conventions above. The model itself is neither run nor changed.

    Args:
        model: A segmentor of mmseg, a one- or two-stage detector of mmdet, or a module that takes
            (N, C, H, W). On any device; on the meta device it needs no memory.
        size: Height and width of the image.
        in_channels: Channels of the image.

    Raises:
        NotImplementedError: The model runs an operator whose cost is not known, or does not run on shapes alone; the
            message names the operator or the module.
    """
    tree = breakdown(model, size, in_channels)
    return Complexity(tree.parameters, tree.macs)


def breakdown(model: nn.Module, size: Tuple[int, int], in_channels: int = 3) -> Node:
    """Count as :func:`count` does, for every module of the model but the auxiliary head.

    The count of a module includes those of its children, and what its own ``forward`` computes without them, such as
    the matrix products of an attention.

    Returns:
        The root of the tree.

    Raises:
        NotImplementedError: As :func:`count`.
    """
    model = _meta_copy(model)
    image = torch.empty(1, in_channels, *size, device='meta')
    formulas = dict(FORMULAS)
    if 'torchvision' in sys.modules:
        formulas[torch.ops.torchvision.deform_conv2d] = lambda x, weight, *_, out_shape, **__: (
            2 * math.prod(out_shape) * math.prod(weight[1:]))
    unknown = _UnknownOperators({**flop_registry, **formulas})
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    meter = _Meter(model, counter)
    try:
        with torch.no_grad(), _deformable_as_plain(), _samples_counted(meter), counter, unknown:
            _run(model, image)
    except Exception as error:  # whatever a foreign model raises where there are no values
        raise NotImplementedError(f'{meter.failed} does not run on the shape of a {size[1]}x{size[0]} image (width x '
                                  f'height) alone: {type(error).__name__}: {error}') from error
    if unknown.names:
        raise NotImplementedError(f"multiply-adds of {', '.join(sorted(unknown.names))} are not known")
    meter.settle()
    left_out = {model.auxiliary_head} if getattr(model, 'with_auxiliary_head', False) else set()
    return _tree(model, '', meter, seen=left_out, counted=set())


def compare_forms(training: Node, merged: Node, depth: int) -> Iterator[FormsLine]:
    """Yield the lines of a table that compares two forms of a model, parents before children.

    Args:
        training: The model with its branches not merged.
        merged: The model with its branches merged.
        depth: The last level of modules; the model itself is level 0.
    """
    def lines(level: int, before: Optional[Node], after: Optional[Node]) -> Iterator[FormsLine]:
        node = before or after
        yield FormsLine(level, node.name, before, after)
        if level == depth:
            return
        first, second = ({child.name: child for child in form.children} if form else {} for form in (before, after))
        for name in dict.fromkeys((*first, *second)):
            yield from lines(level + 1, first.get(name), second.get(name))

    return lines(0, training, merged)


class _EmptyOnMeta(TorchFunctionMode):
    """Puts what ``torch.empty`` makes, large parameters above all, on the meta device.

    ``with torch.device('meta')`` would take ``torch.linspace`` too, whose values Swin's constructor reads.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(dict(kwargs or {}, device='meta') if func is torch.empty else kwargs or {}))


class _UnknownOperators(dispatch_mode()):
    """Collects operators that do real work and that PyTorch's counter takes for free: all that it has no formula for,
    but what is known to cost nothing."""

    def __init__(self, formulas: dict):
        super().__init__()
        self.formulas = formulas
        self.names: Set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket not in self.formulas and not self._is_free(func):
            with self:  # an operator that is made of others is counted as those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.names.add(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def _is_free(func) -> bool:
        if func.namespace != 'aten':
            return func.namespace == 'prim'
        name = func.overloadpacket.__name__.rstrip('_')
        return torch.Tag.pointwise in func.tags or func.is_view or bool(_FREE.fullmatch(name))


class _Meter:
    """Assigns what a counter counts to the module in whose ``forward`` it was computed, the innermost one.

    It replaces the ``forward`` of every module. Hooks would miss the heads of mmseg and mmdet, whose ``forward`` is
    called by name.
    """

    def __init__(self, model: nn.Module, counter: FlopCounterMode):
        self.counter, self.counted = counter, 0
        self.macs: Counter = Counter()
        self.ran: Set[nn.Module] = set()
        self.failed: Optional[str] = None
        self._running = [model]
        self._model = type(model).__name__
        for name, module in model.named_modules():
            module.forward = self._metered(name, module, module.forward)

    def add(self, macs: int) -> None:
        """Assign multiply-adds that the counter does not see to the innermost running module."""
        self.macs[self._running[-1]] += macs

    def settle(self) -> None:
        """Assign to the innermost running module what was counted since the last call."""
        total = self.counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two
        self.add(total - self.counted)
        self.counted = total

    def _metered(self, name: str, module: nn.Module, forward):
        @functools.wraps(forward)
        def run(*args, **kwargs):
            self.settle()
            self.ran.add(module)
            self._running.append(module)
            try:
                out = forward(*args, **kwargs)
            except Exception:
                self.failed = self.failed or (f"'{name}' ({type(module).__name__})" if name else self._model)
                raise
            self.settle()
            self._running.pop()
            return out

        return run


def _tree(module: nn.Module, name: str, meter: _Meter, seen: Set[nn.Module], counted: Set[nn.Parameter]) -> Node:
    seen.add(module)
    own = set(module.parameters(recurse=False)) - counted
    counted |= own
    children = []
    for child_name, child in module.named_children():
        if child not in seen:
            children.append(_tree(child, child_name, meter, seen, counted))
    return Node(name, type(module).__name__,
                sum(p.numel() for p in own) + sum(child.parameters for child in children),
                meter.macs[module] + sum(child.macs for child in children),
                module in meter.ran or any(child.ran for child in children), tuple(children))


def _deformable_as_plain() -> ExitStack:
    """mmcv's compiled deformable convolutions, which run on no shapes, as the plain ones that cost the same."""
    def first(ctx, x, offset, weight, stride=1, padding=0, dilation=1, groups=1, *_):
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    def modulated(ctx, x, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *_):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    patches = ExitStack()
    for module, name, plain in (('deform_conv', 'DeformConv2dFunction', first),
                                ('modulated_deform_conv', 'ModulatedDeformConv2dFunction', modulated)):
        if f'mmcv.ops.{module}' in sys.modules:
            function = getattr(sys.modules[f'mmcv.ops.{module}'], name)
            patches.callback(setattr, function, 'forward', vars(function)['forward'])
            function.forward = staticmethod(plain)
    return patches


@contextmanager
def _samples_counted(meter: _Meter) -> Iterator[None]:
    """In this context the samples of DCNv3 and DCNv4 are counted: made of grid_sample and sums, they would be free."""
    plain = deformable.sum_of_samples

    def counted(maps: Tensor, offset: Tensor, mask: Tensor, first: int, window) -> Tensor:
        out = plain(maps, offset, mask, first, window)
        meter.add(deformable.multiply_adds(out.shape, window.taps))
        return out

    deformable.sum_of_samples = counted
    try:
        yield
    finally:
        deformable.sum_of_samples = plain


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers have shapes and no values."""
    memo = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device='meta')
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    empty_model = copy.deepcopy(model, memo)
    empty_model.eval()  # mmdet's ResNet does not return itself
    return empty_model


def _run(model: nn.Module, image: Tensor) -> None:
    if hasattr(model, 'roi_head'):
        _run_two_stage(model, image)
    elif hasattr(model, 'decode_head'):
        model(image, mode='tensor')
    elif hasattr(model, 'bbox_head'):
        from mmdet.structures import DetDataSample
        size = tuple(image.shape[2:])
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size, pad_shape=size))
        model(image, [sample], mode='tensor')
    else:
        model(image)


def _run_two_stage(model: nn.Module, image: Tensor) -> None:
    features = model.extract_feat(image)
    if model.with_rpn:
        model.rpn_head(features)
    head = model.roi_head
    stages = [(head.bbox_roi_extractor, head.bbox_head, BOX_PROPOSALS)]
    if head.with_mask:
        stages.append((head.mask_roi_extractor, head.mask_head, MASK_PROPOSALS))
    for extractors, heads, proposals in stages:
        for extractor, stage in zip(_as_list(extractors), _as_list(heads)):
            # RoIAlign, which does not run on the meta device and is not counted, would give these shapes
            side = extractor.roi_layers[0].output_size
            stage(image.new_empty(proposals, extractor.out_channels, *side))


def _as_list(modules: nn.Module) -> List[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
