"""Depthwise convolution with large kernels: a function, a module, and a function that replaces modules by it.

In eager mode the operator is a ``torch.autograd.Function`` that chooses a backend for each step (:mod:`.choice`). Under
``torch.compile`` the same code is a pair of custom operators, which the compiler treats as opaque. In exported graphs
and under the transforms of ``torch.func`` it is PyTorch's ordinary convolution.
"""
from functools import partial, wraps
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ._private import is_legacy_batched, packs_saved_tensors, transforms_active
from .backends import Backend, ConvProblem, get, remembered
from .backends.base import given_dtypes
from .backends.native import conv2d_same, plain_gradients
from .choice import attempt, choose, choose_gradients, choose_training, insisted_backend
from .layout import exporting

_Function = TypeVar('_Function', bound=Callable[..., Any])
_Gradients = Tuple[Optional[Tensor], ...]  # one for each input; None for inputs that are not tensors


def _run(step: str, method: Any, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
         grad: Optional[Tensor] = None, owner: Optional[Tensor] = None) -> Any:
    """Runs one step with one backend.

    Args:
        step: One of ``STEPS``.
        method: The backend.
        problem: The problem of ``x`` and ``weight``.
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        bias: (C,) or None.
        grad: Gradient of the output, (N, C, H, W), if the step needs it.
        owner: See :meth:`.backends.Backend.inference`.

    Returns:
        The output or a gradient; for ``'gradients'`` both gradients; for ``'training'`` the output and both gradients.
    """
    if step == 'inference':
        return method.inference(x, weight, bias, problem, owner)
    if step == 'forward':
        return method.forward(x, weight, bias, problem)
    if step == 'grad_input':
        return method.grad_input(grad, weight, problem)
    if step == 'grad_weight':
        return method.grad_weight(grad, x, problem)
    if step == 'gradients':
        return method.gradients(grad, x, weight, problem)
    kept: List[Tensor] = []
    return method.forward(x, weight, bias, problem, kept), method.gradients(grad, x, weight, problem, kept)


def _in_given_dtypes(function: _Function) -> _Function:
    """A decorator that disables autocast in a function, which has been given tensors that are cast already.

    The first argument of the function must be a tensor.
    """

    @wraps(function)
    def wrapped(tensor: Tensor, *args: Any) -> Any:
        with given_dtypes(tensor.device):
            return function(tensor, *args)

    return cast(_Function, wrapped)


# ``owner`` is the parameter of which autocast has made a weight, or the weight itself. Its address identifies the
# weight whose calls are counted (:func:`.choice.choose`).
@_in_given_dtypes
def _forward(x: Tensor, weight: Tensor, bias: Optional[Tensor], backend: Optional[str], owner: Tensor,
             step: str = 'forward') -> Tensor:
    """Computes the output by the step ``'inference'`` or ``'forward'``. If ``backend`` is None, chooses one."""
    problem = ConvProblem.of(x, weight)

    def run(method: Backend) -> Any:
        return _run(step, method, problem, x, weight, bias, owner=owner)

    if backend:
        return run(get(backend, problem))
    method, _ = choose(step, problem, run, weight=owner.data_ptr())
    assert method is not None  # native can run every problem
    return attempt(run, method, problem)


@_in_given_dtypes
def _training(x: Tensor, weight: Tensor, bias: Optional[Tensor], backend: Optional[str],
              owner: Tensor) -> Tuple[Tensor, Dict[str, Backend], List[Tensor]]:
    """Computes the output when both gradients will be needed.

    Returns:
        The output, the backends by step (see :func:`.choice.choose_training`), and the intermediate results that the
        backend saved for the gradients.
    """
    problem = ConvProblem.of(x, weight)
    kept: List[Tensor] = []
    if backend:
        method: Any = get(backend, problem)
        if not method.keeps:
            return method.forward(x, weight, bias, problem), {'forward': method, 'gradients': method}, kept
        return method.forward(x, weight, bias, problem, kept), {'training': method}, kept
    # The gradient of the output is not known yet. Its values do not influence the time, so x is used in its place.
    methods = choose_training(problem, lambda step, method: _run(step, method, problem, x, weight, bias, grad=x),
                              owner.data_ptr())

    def run(method: Any) -> Any:
        kept.clear()
        if 'training' in methods and method.keeps:
            return method.forward(x, weight, bias, problem, kept)
        return method.forward(x, weight, bias, problem)

    out = attempt(run, methods.get('training') or methods['forward'], problem)
    if 'training' in methods and not kept:  # the backend failed and native was used
        methods = {'gradients': get('native', problem)}
    return out, methods, kept


@_in_given_dtypes
def _gradients(grad: Tensor, x: Tensor, weight: Tensor, methods: Dict[str, Backend], kept: Sequence[Tensor] = (),
               insisted: bool = False) -> Tuple[Optional[Tensor], Optional[Tensor]]:
    """Computes the gradients of the steps in ``methods``.

    Args:
        grad: Gradient of the output, (N, C, H, W).
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        methods: The backends by step.
        kept: The intermediate results that the forward pass saved.
        insisted: Whether the user has chosen the backend. If not, ``native`` is the fallback if a backend fails.

    Returns:
        The gradients of input and weight; None for one that is not needed.
    """
    problem = ConvProblem.of(x, weight)

    def by(step: str) -> Any:
        def run(method: Any) -> Any:
            if step == 'training':
                return method.gradients(grad, x, weight, problem, *[kept] * method.keeps)
            return _run(step, method, problem, x, weight, grad=grad)

        return run(methods[step]) if insisted else attempt(run, methods[step], problem)

    for step in ('training', 'gradients'):
        if step in methods:
            return by(step)
    grad_x, grad_w = (by(step) if step in methods else None for step in ('grad_input', 'grad_weight'))
    return grad_x, grad_w


@_in_given_dtypes
def _gradient_methods(grad: Tensor, x: Tensor, weight: Tensor, backend: Optional[str], for_input: bool,
                      for_weight: bool, owner: int) -> Dict[str, Backend]:
    """Chooses the backends of a backward pass for which the forward pass has not chosen them.

    Args:
        grad: Gradient of the output, (N, C, H, W).
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        backend: Name of the backend, or None to choose it.
        for_input, for_weight: Which gradients are needed.
        owner: Address of the weight.

    Returns:
        A dict from step to backend.
    """
    problem = ConvProblem.of(x, weight)

    def run(step: str, method: Backend) -> Any:
        return _run(step, method, problem, x, weight, grad=grad)

    if for_input and for_weight:
        return {'gradients': get(backend, problem)} if backend else choose_gradients(problem, run, owner)[0]
    chosen = {step: get(backend, problem) if backend else choose(step, problem, partial(run, step), weight=owner)[0]
              for step in ['grad_input'] * for_input + ['grad_weight'] * for_weight}
    return {step: method for step, method in chosen.items() if method is not None}


def _bias_gradient(grad: Tensor) -> Tensor:
    """Returns the gradient of the bias, (C,)."""
    return grad.sum((0, 2, 3))


def _batched(grad: Tensor) -> bool:
    """Returns whether ``grad`` is a batch of gradients, made by ``is_grads_batched`` or ``torch.vmap``."""
    return _transformed(grad) or is_legacy_batched(grad)


class _Owner(NamedTuple):
    """Hides a tensor from autograd, which would otherwise treat it as an input of the function."""

    tensor: Tensor


class _DepthwiseConv2d(torch.autograd.Function):
    """The operator in eager mode, if gradients are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor], backend: Optional[str],
                owner: _Owner) -> Tensor:
        learns = ctx.needs_input_grad[0] and ctx.needs_input_grad[1]
        # With saved_tensors_hooks no spectra are saved. Activation checkpointing, which uses these hooks, should save
        # memory, and requires that the recomputation saves the same tensors; but the backend may change in between.
        if learns and not packs_saved_tensors():
            out, ctx.methods, kept = _training(x, weight, bias, backend, owner.tensor)
        else:
            out, ctx.methods, kept = _forward(x, weight, bias, backend, owner.tensor), None, []
        ctx.save_for_backward(x, weight, *kept)
        ctx.backend, ctx.owner = backend, owner.tensor.data_ptr()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> _Gradients:
        x, weight, *kept = ctx.saved_tensors
        for_input, for_weight, for_bias, *_ = ctx.needs_input_grad
        # with create_graph or is_grads_batched: only PyTorch's own gradients support these
        if torch.is_grad_enabled() or _batched(grad):
            grad_x, grad_w = plain_gradients(grad, x if for_weight else None, weight if for_input else None,
                                             ConvProblem.of(x, weight))
        else:
            methods = ctx.methods or _gradient_methods(grad, x, weight, ctx.backend, for_input, for_weight, ctx.owner)
            grad_x, grad_w = _gradients(grad, x, weight, methods, kept, ctx.backend is not None)
        return grad_x, grad_w, _bias_gradient(grad) if for_bias else None, None, None


# Under torch.compile, the forward and the backward pass are custom operators, which the compiler does not trace into.
@torch.library.custom_op('mmlk::depthwise_conv2d', mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Optional[Tensor], backend: Optional[str]) -> Tensor:
    return _forward(x, weight, bias, backend or insisted_backend(), weight)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Optional[Tensor], backend: Optional[str]) -> Tensor:
    return torch.empty_like(x, memory_format=ConvProblem.of(x, weight).memory_format)


@torch.library.custom_op('mmlk::depthwise_conv2d_backward', mutates_args=())
def _backward_operator(grad: Tensor, x: Tensor, weight: Tensor, backend: Optional[str], for_input: bool,
                       for_weight: bool) -> Tuple[Tensor, Tensor]:
    backend = backend or insisted_backend()
    methods = _gradient_methods(grad, x, weight, backend, for_input, for_weight, weight.data_ptr())
    grads = _gradients(grad, x, weight, methods, (), backend is not None)
    return tuple(x.new_empty(0) if g is None else g for g in grads)


@_backward_operator.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, backend: Optional[str], for_input: bool,
      for_weight: bool) -> Tuple[Tensor, Tensor]:
    return (torch.empty_like(x, memory_format=ConvProblem.of(x, weight).memory_format) if for_input else x.new_empty(0),
            torch.empty_like(weight, memory_format=torch.contiguous_format) if for_weight else x.new_empty(0))


def _setup_backward_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
    """Saves what :func:`_operator_second_backward` needs."""
    grad, x, weight, ctx.backend, *ctx.taken = inputs
    ctx.save_for_backward(grad, x, weight)


def _operator_second_backward(ctx: Any, for_grad_x: Optional[Tensor], for_grad_w: Optional[Tensor]) -> _Gradients:
    """Computes the gradients of the two gradients (double backward), with respect to grad, x and weight.

    The gradient of the input is linear in grad and weight, the gradient of the weight in grad and x. Each is the
    adjoint of the forward pass in one argument, so their derivatives are again forward passes and gradients.
    """
    grad, x, weight = ctx.saved_tensors
    u, v = (t if taken else None for t, taken in zip((for_grad_x, for_grad_w), ctx.taken))
    of_grad, of_x, of_weight, *_ = ctx.needs_input_grad

    def total(*terms: Optional[Tensor]) -> Optional[Tensor]:
        given = [term for term in terms if term is not None]
        return sum(given[1:], given[0]) if given else None

    return (total(None if u is None else _operator(u, weight, None, ctx.backend),
                  None if v is None else _operator(x, v, None, ctx.backend)) if of_grad else None,
            None if v is None or not of_x else _backward_operator(grad, x, v, ctx.backend, True, False)[0],
            None if u is None or not of_weight else _backward_operator(grad, u, weight, ctx.backend, False, True)[1],
            None, None, None)


_backward_operator.register_autograd(_operator_second_backward, setup_context=_setup_backward_context)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
    """Saves what :func:`_operator_backward` needs."""
    x, weight, _, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _operator_backward(ctx: Any, grad: Tensor) -> _Gradients:
    """Computes the gradients of input, weight and bias."""
    for_input, for_weight, for_bias, _ = ctx.needs_input_grad
    grad_x, grad_w = _backward_operator(grad, *ctx.saved_tensors, ctx.backend, for_input, for_weight)
    return (grad_x if for_input else None, grad_w if for_weight else None,
            _bias_gradient(grad) if for_bias else None, None)


_operator.register_autograd(_operator_backward, setup_context=_setup_context)


def _check(input: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    """Raises a ValueError if shapes, dtypes or devices do not match."""
    if input.dim() != 4 or weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] != input.shape[1]:
        raise ValueError(
            'depthwise_conv2d takes input (N, C, H, W) and weight (C, 1, kh, kw), '
            f'got {tuple(input.shape)} and {tuple(weight.shape)}')
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f'bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}')
    for name, other in (('weight', weight), ('bias', bias)):
        if other is not None and (other.dtype, other.device) != (input.dtype, input.device):
            raise ValueError(f'input and {name} must have one dtype and device, got {input.dtype} on {input.device} '
                             f'and {other.dtype} on {other.device}')


def _transformed(*tensors: Optional[Tensor]) -> bool:
    """Returns whether ``torch.func`` transforms or forward-mode differentiation are applied to one of the tensors.

    Only PyTorch's own convolution supports these.
    """
    return transforms_active() or any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def depthwise_conv2d(input: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *,
                     backend: Optional[str] = None) -> Tensor:
    """Depthwise convolution with stride 1, dilation 1 and "same" padding.

    The rounding errors of backends that compute in the frequency domain (``dft``, ``fft``, ``fft_pairs``) are relative
    to the largest value of a map. For example, if a map of standard normal values has one pixel of 1e5, the error of
    all other pixels is about 4e-4. For such inputs choose a direct backend: ``with mmlk.ops.use_backend('padded'):`` on
    a CPU (``'native'`` on a GPU), or ``MMLK_BACKEND=padded``. Without gradients, the images of a batch do not influence
    each other's rounding errors, except with ``backend='fft_pairs'``.

    Args:
        input: (N, C, H, W).
        weight: (C, 1, kh, kw). Kernels may be odd, even or rectangular, and larger than the map.
        bias: (C,) or None.
        backend: Name of the backend for the forward and the backward pass. None uses that of :func:`use_backend` or
            ``MMLK_BACKEND`` if there is one, otherwise the fastest for each step (:mod:`mmlk.ops.choice`). Exported
            graphs (``torch.export``, ONNX, TorchScript) and ``torch.func`` transforms always use an ordinary
            convolution.

    Returns:
        (N, C, H, W), with the memory format of the input. The dtype is that of the input, under autocast that of
        autocast.

    Raises:
        ValueError: Shapes, dtypes or devices do not match, or the backend cannot run the problem; the message gives the
            reason.
    """
    kind, owner = input.device.type, weight
    if kind != 'meta' and torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    _check(input, weight, bias)
    compiling = torch.compiler.is_compiling()
    plain = kind == 'meta' or not compiling and (
        type(input) not in (Tensor, nn.Parameter) or _transformed(input, weight, bias))  # for example fake tensors
    if plain or exporting() or not (input.numel() and weight.numel()):
        # the memory format is left out, because it does not matter for an ordinary convolution
        problem = ConvProblem(input.device, input.dtype, *input.shape, *weight.shape[-2:])
        if backend is not None:
            get(backend, problem)
        return conv2d_same(input, weight, bias, problem)
    if compiling:
        return _operator(input, weight, bias, backend)
    backend = backend or insisted_backend()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        if weight.requires_grad:
            remembered.learning(owner)
        return _DepthwiseConv2d.apply(input, weight, bias, backend, _Owner(owner))
    return _forward(input, weight, bias, backend, owner, 'inference')


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` with stride 1 and "same" padding that is computed by :func:`depthwise_conv2d`.

    Its attributes (``kernel_size``, ``padding``, ...) and its state dict are those of the ``nn.Conv2d``.

    Args:
        channels: Number of input and output channels.
        kernel_size: Size of the kernel, an integer or (kh, kw).
        bias: Whether to add a bias, (channels,).

    Shape:
        Input and output: (N, C, H, W).
    """

    def __init__(self, channels: int, kernel_size: Union[int, Tuple[int, int]], bias: bool = True):
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        padding = (kh // 2, kw // 2) if kh % 2 and kw % 2 else 'same'
        super().__init__(channels, channels, (kh, kw), padding=padding, groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.bias)


def _replaceable(conv: nn.Module, min_kernel: int) -> bool:
    """Returns whether :func:`replace_depthwise` replaces the module."""
    if type(conv) is not nn.Conv2d or max(conv.kernel_size) < min_kernel:
        return False
    same = conv.padding == 'same' or (all(k % 2 for k in conv.kernel_size) and
                                      conv.padding == tuple(k // 2 for k in conv.kernel_size))
    return (same and conv.groups == conv.in_channels == conv.out_channels and conv.stride == (1, 1)
            and conv.dilation == (1, 1) and conv.padding_mode == 'zeros')


def replace_depthwise(model: nn.Module, min_kernel: int = 7) -> nn.Module:
    """Makes a :class:`DepthwiseConv2d` of every suitable depthwise convolution of a model, in-place.

    Each ``nn.Conv2d`` (but no subclass) with groups = channels, stride 1, dilation 1 and zero "same" padding is
    suitable. The modules stay the same objects, with their parameters, hooks and state dict; only their class changes.

    Args:
        model: Any model, for example a ConvNeXt of timm.
        min_kernel: Minimum of the longer side of the kernels to replace.

    Returns:
        ``model``.

    Raises:
        ValueError: The model has no such convolution.
    """
    found = [module for module in model.modules() if _replaceable(module, min_kernel)]
    if not found and not any(isinstance(module, DepthwiseConv2d) for module in model.modules()):
        raise ValueError(f'{type(model).__name__} has no depthwise nn.Conv2d with stride 1, dilation 1, zero "same" '
                         f'padding and a kernel of at least {min_kernel}')
    for module in found:
        module.__class__ = DepthwiseConv2d
    return model
