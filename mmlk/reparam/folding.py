"""Folds BatchNorm layers into neighbouring convolutions, for inference."""
from typing import Optional

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from .algebra import KernelBias, fold_bn, fold_bn_before, foldable
from .merge import refresh

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)


def fold_norms(module: nn.Module, *inputs: Tensor) -> int:
    """Folds every BatchNorm into the convolution before it, or into the one after it if that has no padding, in-place.

    The graph that ``torch.export`` records shows which layers follow each other. A norm is folded only if its input is
    used by nothing else. Modules that run more than once in a forward pass are not changed. Afterwards the module is in
    eval mode.

    Args:
        module: A network whose parallel branches have been merged.
        inputs: Example inputs of ``module``. Their values do not matter.

    Returns:
        The number of folded norms. Each has been replaced with ``nn.Identity``.

    Raises:
        Exception: ``torch.export`` cannot record the graph. The module has not been changed.
    """
    module.eval()
    refresh(module)
    with torch.no_grad():
        program = torch.export.export(module, inputs)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def owner(tensor: Optional[Node], kind: type) -> Optional[str]:
        """Returns the name of the module of type ``kind`` that owns ``tensor``; None if it is used more than once."""
        name = names.get(getattr(tensor, 'name', None))
        if tensor is None or name is None or len(tensor.users) != 1:
            return None
        name = name.rpartition('.')[0]
        return name if name and isinstance(module.get_submodule(name), kind) else None

    folded = 0
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        name = owner(node.args[3], _BatchNorm)
        if name is None or not foldable(module.get_submodule(name)):
            continue
        norm, before, after = module.get_submodule(name), node.args[0], next(iter(node.users), None)
        if before.target in _CONVOLUTIONS and len(before.users) == 1 and owner(before.args[1], nn.Conv2d):
            conv = module.get_submodule(owner(before.args[1], nn.Conv2d))
            _fill(conv, fold_bn(conv, norm))
        elif len(node.users) == 1 and after is not None and _pads_nothing(after) and owner(after.args[1], nn.Conv2d):
            conv = module.get_submodule(owner(after.args[1], nn.Conv2d))
            _fill(conv, fold_bn_before(norm, conv))
        else:
            continue
        parent, _, child = name.rpartition('.')
        setattr(module.get_submodule(parent), child, nn.Identity())
        folded += 1
    return folded


def _pads_nothing(node: Node) -> bool:
    """Returns whether the node is a convolution without padding: padded zeros would need the shift of the norm too."""
    padding = node.args[4] if len(node.args) > 4 else (0, 0)
    return node.target is torch.ops.aten.conv2d.default and not any(padding)


def _fill(conv: nn.Conv2d, folded: KernelBias) -> None:
    kernel, bias = folded
    conv.weight.data.copy_(kernel)
    conv.bias = nn.Parameter(bias.to(conv.weight), requires_grad=conv.weight.requires_grad)
