"""Rewrites the graph of a network for inference on a CPU: packed convolutions that compute what follows them.

:func:`capture` records the operators of a network as a graph, by ``torch.export``. :func:`fuse` then replaces
operators, in these steps:

1. What only depends on weights is computed once.
2. Where a block works on (N, H, W, C) between two permutations (ConvNeXt), its linear layers become 1x1 convolutions of
   (N, C, H, W), and the permutations cancel each other. In channels_last neither moves any memory.
3. Every convolution becomes a :class:`.fused.FusedConv`; a large depthwise one is computed by :mod:`mmlk.ops`.
4. A factor per channel after a convolution (layer scale) is multiplied into the weights. An activation, or the sum with
   a shortcut, is computed inside the convolution. A sum overwrites the shortcut if that is not used afterwards.
5. A 3x3 convolution of many channels becomes a :class:`.winograd.WinogradConv`.
6. Two pointwise layers, and the sum after them, become one :class:`.fused.FeedForward`.
"""
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, fx, nn

from mmlk.ops import depthwise_conv2d
from mmlk.ops.layout import keep_operators

from .formats import symbolic_sizes
from .fused import NONE, Activation, FeedForward, FusedConv, OverLastAxis, linear
from .winograd import WinogradConv, suits

aten = torch.ops.aten

_CONVOLUTIONS = aten.conv2d.default, aten.conv2d.padding
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # the axes of (N, C, H, W) as (N, H, W, C), and back
# Operators that return their input itself in some cases, although their schemas do not say so.
_MAYBE_INPUT = {aten.type_as.default, aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_MIN_KERNEL = 7  # minimum of the longer side of the depthwise kernels that mmlk.ops computes


def capture(network: nn.Module, example: Tensor, step: Optional[int], batch: bool = True) -> fx.GraphModule:
    """Records the graph of a network in eval mode.

    Args:
        network: A module from images to a tensor, or to a tuple or list of tensors.
        example: (N, C, H, W), of the dtype of the network.
        step: The graph is to take images of all heights and widths that are multiples of this, from ``LEAST_SIDE`` on;
            None for the size of the example alone.
        batch: Whether the graph is to take any number of images, and not that of the example alone.

    Returns:
        The graph, as a module from images to the outputs of the network. With a step, ``torch.export`` does not notice
        every decision that depends on the size, so the caller has to compare it with the network at another size.

    Raises:
        Exception: ``torch.export`` cannot record the network for these sizes.
    """
    images = max(len(example), 2) if batch else len(example)
    sizes, inputs = symbolic_sizes(example.new_zeros(images, *example.shape[1:]), step, batch=batch)
    with torch.no_grad(), keep_operators():
        program = torch.export.export(network, (inputs, ), dynamic_shapes=(sizes, ), strict=False)
        module = _without_mutations(program)
    for node in list(module.graph.nodes):
        if node.op == 'call_module' and not node.users:  # a check of the sizes, which the caller does
            module.graph.erase_node(node)
        elif node.target is aten.dropout.default and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.contiguous.default and not node.kwargs and _is_permutation(node.args[0], _TO_FIRST):
            node.replace_all_uses_with(node.args[0])  # a copy out of channels_last, in which the maps stay here
            module.graph.erase_node(node)
        elif node.target is aten.linalg_vector_norm.default:
            _norm_by_sum(module.graph, node)
        elif node.target is aten.view.default:  # which fails for a map in channels_last, where reshape copies
            node.target = aten.reshape.default
    return fx.GraphModule(module, module.graph)


def _norm_by_sum(graph: fx.Graph, node: fx.Node) -> None:
    """Replaces a 2-norm over the pixels of (N, H, W, C), which is several times as slow as the sum of squares."""
    x, order, axes, keepdim = (*node.args, *(2, None, False)[len(node.args) - 1:])
    axes = node.kwargs.get('dim', axes)
    if order != 2 or not axes or node.kwargs.get('dtype') is not None:
        return
    with graph.inserting_before(node):
        square = graph.call_function(aten.square.default, (x, ))
        total = graph.call_function(aten.sum.dim_IntList, (square, axes, keepdim))
        node.replace_all_uses_with(graph.call_function(aten.sqrt.default, (total, )))
    graph.erase_node(node)


def _without_mutations(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Returns the graph of a program, in which no operator changes a tensor in-place."""
    module = program.module()
    for node in list(module.graph.nodes):
        if not _mutates(node):
            continue
        name, _, overload = str(node.target).rpartition('.')
        plain = getattr(getattr(aten, name.rpartition('.')[2][:-1], None), overload, None)
        if plain is None or len(node.args[0].users) != 1 or _is_view(node.args[0]):
            return program.run_decompositions({}).module()  # takes longer than the export itself
        node.target = plain
    return module


def _mutates(node: fx.Node) -> bool:
    """Returns whether an operator changes one of its inputs."""
    schema = getattr(node.target, '_schema', None) if node.op == 'call_function' else None
    return schema is not None and schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    """Returns whether the output of an operator may share memory with one of its inputs, as that of a slice does."""
    schema = getattr(node.target, '_schema', None) if node.op == 'call_function' else None
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


class _Shapes(fx.Interpreter):
    """Runs a graph, and notes the shape of each tensor in the ``meta`` of its node."""

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            node.meta['shape'] = tuple(result.shape)
        return result


def fuse(graph: fx.GraphModule, example: Tensor, batch: bool = True) -> Dict[str, int]:
    """Rewrites a graph in-place; see the top of this file.

    Args:
        graph: Of :func:`capture`.
        example: (N, C, H, W), images of the size for which the weights are packed.
        batch: Whether the graph takes any number of images.

    Returns:
        How many operators each step has replaced, by name.
    """
    with torch.no_grad():
        _fold_constants(graph)
        noted = example
        if batch:  # two images, so that a weight of shape (1, C, H, W) is not taken for a map
            noted = example[:1].expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        _Shapes(graph).run(noted)
        return _Fusion(graph, len(example), len(noted)).run()


def _fold_constants(graph: fx.GraphModule) -> None:
    """Computes what depends on nothing but weights."""
    values: Dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == 'get_attr':
            values[node] = _attribute(graph, node)
        elif node.op == 'call_function' and node.all_input_nodes and all(
                source in values for source in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*args, **kwargs)
            if not isinstance(value, Tensor):
                continue
            values[node] = value.detach().clone()
            name = f'_constant_{node.name}'
            graph.register_buffer(name, values[node], persistent=False)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            values[constant] = values[node]
            node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = graph
    for name in str(node.target).split('.'):
        value = getattr(value, name)
    return value


def _activation(node: fx.Node) -> Optional[Activation]:
    """Returns the activation that an operator computes, if oneDNN has it."""
    if len(node.all_input_nodes) != 1:
        return None
    names = {aten.relu.default: 'relu', aten.sigmoid.default: 'sigmoid', aten.tanh.default: 'tanh',
             aten.silu.default: 'swish', aten.hardswish.default: 'hardswish'}
    if node.target in names:
        return Activation(names[node.target])
    if node.target is aten.gelu.default:
        return Activation('gelu', algorithm=node.kwargs.get('approximate', 'none'))
    return None


def _only_user(node: fx.Node) -> Optional[fx.Node]:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_permutation(node: Any, axes: Sequence[int]) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.permute.default and [
        axis % 4 for axis in node.args[1]] == list(axes) and len(node.args[1]) == 4


class _Fusion:
    """The steps of :func:`fuse` on one graph whose nodes have shapes.

    Args:
        module: The graph.
        batch: Number of images for which the weights are packed.
        noted: Number of images of which the nodes have the shapes.
    """

    def __init__(self, module: fx.GraphModule, batch: int, noted: int):
        self.module, self.graph, self.batch, self.noted = module, module.graph, batch, noted
        self.layers: Dict[fx.Node, nn.Module] = {}  # of each node that has been replaced
        self.removed: Set[fx.Node] = set()
        self.done: Dict[str, int] = dict.fromkeys(
            ('convolutions', 'depthwise convolutions', 'scales', 'activations', 'sums', 'Winograd convolutions',
             'feed-forward blocks'), 0)

    def run(self) -> Dict[str, int]:
        for step in (self.linear_as_convolution, self.sink_permutations, self.replace_convolutions, self.fuse_following,
                     self.filter_minimally, self.feed_forward, self.inplace):
            for node in list(self.graph.nodes):
                if node not in self.removed and (node.op == 'call_function' or node in self.layers):
                    step(node)
            self.graph.eliminate_dead_code()
        for layer in self.layers.values():
            for conv in layer.modules():
                if isinstance(conv, FusedConv) and not conv.packed:
                    conv.pack()
        used = {str(node.target) for node in self.graph.nodes if node.op == 'call_module'}
        for name in [name for name, _ in self.module.named_children() if name.startswith('_layer_')]:
            if name not in used:
                delattr(self.module, name)
        self.graph.lint()
        self.module.recompile()
        return self.done

    def constant(self, node: Any) -> Optional[Tensor]:
        """Returns the value of a node that is a weight."""
        return _attribute(self.module, node).detach() if isinstance(node, fx.Node) and node.op == 'get_attr' else None

    def permuted(self, node: fx.Node, axes: Sequence[int]) -> fx.Node:
        """Returns a permutation of a map, inserted after the last node, or the map it was permuted from."""
        if any(_is_permutation(node, a) and list(axes) == b
               for a, b in ((_TO_LAST, _TO_FIRST), (_TO_FIRST, _TO_LAST))):
            return node.args[0]
        new = self.graph.call_function(aten.permute.default, (node, list(axes)))
        new.meta['shape'] = tuple(node.meta['shape'][axis] for axis in axes)
        return new

    def linear_as_convolution(self, node: fx.Node) -> None:
        """Makes a 1x1 convolution of a linear layer over the last axis of four."""
        if node.target is not aten.linear.default or len(node.meta.get('shape', ())) != 4:
            return
        x, weight, bias = (*node.args, None)[:3]
        value = self.constant(weight)
        if value is None or bias is not None and self.constant(bias) is None:
            return
        with self.graph.inserting_before(node):
            name = f'_{node.name}_weight'
            self.module.register_buffer(name, value[..., None, None], persistent=False)
            taps = self.graph.get_attr(name)
            conv = self.graph.call_function(aten.conv2d.default, (self.permuted(x, _TO_FIRST), taps, bias))
            conv.meta['shape'] = tuple(node.meta['shape'][axis] for axis in _TO_FIRST)
            self.replace(node, self.permuted(conv, _TO_LAST))

    def sink_permutations(self, node: fx.Node) -> None:
        """Moves a permutation to (N, H, W, C) behind an activation or a factor per channel, and cancels pairs."""
        if any(_is_permutation(node, a) and _is_permutation(node.args[0], b)
               for a, b in ((_TO_FIRST, _TO_LAST), (_TO_LAST, _TO_FIRST))):
            self.replace(node, node.args[0].args[0])
            return
        sources = [source for source in node.all_input_nodes if _is_permutation(source, _TO_LAST)]
        if len(sources) != 1 or len(sources[0].users) != 1:
            return
        source, args = sources[0], list(node.args)
        if node.target is aten.mul.Tensor:
            other = args[1 - args.index(source)]
            factor = self.constant(other)
            if factor is None or factor.numel() != source.meta['shape'][-1] or factor.shape[-1] != factor.numel():
                return
            name = f'_{node.name}_factor'
            self.module.register_buffer(name, factor.reshape(-1, 1, 1), persistent=False)
            with self.graph.inserting_before(node):
                args = [source.args[0], self.graph.get_attr(name)]
        elif _activation(node) is not None:
            args = [source.args[0], *args[1:]]
        else:
            return
        with self.graph.inserting_before(node):
            moved = self.graph.call_function(node.target, tuple(args), node.kwargs)
            moved.meta['shape'] = source.args[0].meta['shape']
            self.replace(node, self.permuted(moved, _TO_LAST))

    def place(self, node: fx.Node, layer: nn.Module, args: Tuple[fx.Node, ...]) -> fx.Node:
        """Replaces a node with the call of a layer."""
        name = f'_layer_{node.name}'
        self.module.add_module(name, layer)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(name, args)
        new.meta['shape'] = node.meta['shape']
        self.layers[new] = layer
        self.replace(node, new)
        return new

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Replaces all uses of a node with another node, and removes it."""
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        self.layers.pop(node, None)
        self.removed.add(node)

    def replace_convolutions(self, node: fx.Node) -> None:
        if 'shape' not in node.meta or node.target not in (*_CONVOLUTIONS, aten.linear.default):
            return
        x = node.args[0]
        weight, bias = self.constant(node.args[1]), self.constant(node.args[2] if len(node.args) > 2 else None)
        if weight is None or bias is None and len(node.args) > 2 and node.args[2] is not None:
            return
        if node.target is aten.linear.default:
            rows = math.prod(node.meta['shape'][:-1]) * self.batch // self.noted
            self.place(node, OverLastAxis(linear(weight, bias, rows)), (x, ))
            self.done['convolutions'] += 1
            return
        stride, padding, dilation, groups = _settings(node, weight)
        if padding is None:
            return
        if _is_large_depthwise(weight, stride, padding, dilation, groups):
            with self.graph.inserting_before(node):
                new = self.graph.call_function(depthwise_conv2d, tuple(node.args[:3]))
            new.meta['shape'] = node.meta['shape']
            self.replace(node, new)
            self.done['depthwise convolutions'] += 1
            return
        size = self.batch, *x.meta['shape'][1:]
        self.place(node, FusedConv(weight, bias, stride, padding, dilation, groups, size), (x, ))
        self.done['convolutions'] += 1

    def fuse_following(self, node: fx.Node) -> None:
        """Computes the operators that follow a convolution inside it, as far as possible."""
        layer = self.layers.get(node)
        while layer is not None:
            conv, user = next(m for m in layer.modules() if isinstance(m, FusedConv)), _only_user(node)
            added = len(node.args) > 1
            if user is None or user.meta.get('shape') != node.meta['shape']:
                return
            activation = _activation(user)
            if activation is not None and conv.activation == NONE and (not added or activation.name == 'relu'):
                conv.activation = activation
                self.done['activations'] += 1
                self.replace(user, node)
            elif user.target is aten.mul.Tensor and conv.activation == NONE and not added:
                factor = self._factor(user, node, isinstance(layer, OverLastAxis))
                if factor is None:
                    return
                conv.scale(factor)
                self.done['scales'] += 1
                self.replace(user, node)
            elif user.target is aten.add.Tensor and conv.activation == NONE and not added and not user.kwargs:
                a, b = user.args
                other = b if a is node else a
                if not isinstance(other, fx.Node) or other is node or other.meta.get('shape') != node.meta['shape']:
                    return
                node = self.place(user, layer, (node.args[0], other))
                conv.inplace = self.may_overwrite(other, node)
                self.done['sums'] += 1
            else:
                return

    def _factor(self, product: fx.Node, node: fx.Node, last: bool) -> Optional[Tensor]:
        """Returns the factor per channel, (C,), with which a map is multiplied; None if it is of another kind."""
        a, b = product.args
        factor, channels = self.constant(b if a is node else a), node.meta['shape'][-1 if last else 1]
        if factor is None or factor.numel() != channels:
            return None
        axis = factor.dim() - (1 if last else 3)
        return factor.flatten() if 0 <= axis < factor.dim() and factor.shape[axis] == channels else None

    def filter_minimally(self, node: fx.Node) -> None:
        """Computes a 3x3 convolution of many channels by Winograd's algorithm."""
        layer = self.layers.get(node)
        if isinstance(layer, FusedConv) and len(node.args) == 1 and suits(layer):
            self.place(node, WinogradConv(layer), node.args)
            self.done['Winograd convolutions'] += 1

    def feed_forward(self, node: fx.Node) -> None:
        """Joins two pointwise layers and the sum after them."""
        second = self.layers.get(node)
        if not isinstance(second, FusedConv) or len(node.args) != 2 or not (second.pointwise and second.inplace):
            return
        hidden, other = node.args
        first = self.layers.get(hidden)
        if (not isinstance(first, FusedConv) or not first.pointwise or len(hidden.args) != 1 or len(hidden.users) != 1
                or second.activation != NONE):
            return
        self.place(node, FeedForward(first, second), (hidden.args[0], other))
        self.graph.erase_node(hidden)
        self.layers.pop(hidden)
        self.removed.add(hidden)
        self.done['feed-forward blocks'] += 1

    def inplace(self, node: fx.Node) -> None:
        """Overwrites the input of a ReLU or a sum, if nothing else uses it."""
        inplace: Dict[Callable, Callable] = {aten.relu.default: aten.relu_.default, aten.add.Tensor: aten.add_.Tensor}
        source = node.args[0] if node.args else None
        if (node.target in inplace and isinstance(source, fx.Node) and len(source.users) == 1
                and (source in self.layers or not self.shares(source))  # an expanded map cannot be written to
                and source.meta.get('shape') == node.meta.get('shape') and self.may_overwrite(source, node)):
            node.target = inplace[node.target]

    def may_overwrite(self, tensor: fx.Node, at: fx.Node) -> bool:
        """Returns whether nothing after the node ``at`` needs the values that a tensor has before it."""
        root = tensor
        while self.shares(root):
            root = root.args[-1] if root in self.layers else root.args[0]
            if not isinstance(root, fx.Node):
                return False
        if root.op not in ('call_function', 'call_module'):  # an input or a weight
            return False
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        todo, seen = [root], set()  # type: Tuple[List[fx.Node], Set[fx.Node]]
        while todo:
            alias = todo.pop()
            seen.add(alias)
            for user in alias.users:
                if user is at:
                    if at in self.layers and at.args[0] is alias:  # a convolution of what is added to it
                        return False
                    continue
                if order[user] > order[at] or user.op == 'output':
                    return False
                if user not in seen and self.shares(user):
                    todo.append(user)
        return True

    def shares(self, node: fx.Node) -> bool:
        """Returns whether the output of a node may share memory with one of its inputs."""
        layer = self.layers.get(node)
        if layer is not None:
            return len(node.args) > 1
        if node.target is depthwise_conv2d or node.op != 'call_function':
            return False
        if getattr(node.target, '_schema', None) is None:  # a function of Python; getitem, for example
            return True
        return node.target in _MAYBE_INPUT or _is_view(node)


def _settings(node: fx.Node, weight: Tensor) -> Tuple[List[int], Optional[List[int]], List[int], int]:
    """Returns stride, padding, dilation and groups of a convolution; None as padding where it is not symmetric."""
    given = dict(zip(('stride', 'padding', 'dilation', 'groups'), node.args[3:]), **node.kwargs)

    def pair(name: str, default: int) -> List[int]:
        value = given.get(name, default)
        value = [value] if isinstance(value, int) else list(value)
        return value * 2 if len(value) == 1 else value

    stride, dilation, groups = pair('stride', 1), pair('dilation', 1), given.get('groups', 1)
    padding = given.get('padding', 0)
    if padding == 'valid':
        return stride, [0, 0], dilation, groups
    if padding == 'same':
        whole = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        return stride, None if any(p % 2 for p in whole) else [p // 2 for p in whole], dilation, groups
    return stride, pair('padding', 0), dilation, groups


def _is_large_depthwise(weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
                        groups: int) -> bool:
    """Returns whether :func:`mmlk.ops.depthwise_conv2d` computes a convolution."""
    kernel = weight.shape[2:]
    return (groups == len(weight) and weight.shape[1] == 1 and max(kernel) >= _MIN_KERNEL
            and {*stride, *dilation} == {1} and [2 * p + 1 for p in padding] == list(kernel))
