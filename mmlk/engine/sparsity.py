"""Dynamic sparse training: a mask keeps a fraction of the weights at zero, and is updated during training.

At the start, SNIP (arXiv:1810.02340) determines how many weights each layer keeps. From time to time the smallest
weights of a layer are set to zero (pruned), and the same number of zero weights at random positions becomes trainable
(grown), as in SET (Mocanu et al., Nature Communications 2018). SLaK (arXiv:2207.03620) is trained in this way.
Official code: https://github.com/VITA-Group/SLaK (MIT), ``sparse_core.py`` and ``funcs.py``.
"""
import copy
import logging
import math
from contextlib import nullcontext
from typing import Dict, List, Optional

import torch
from mmengine.dist import all_reduce, broadcast
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmlk.registry import HOOKS

from .network import network_of

SPARSITY = 'dynamic_sparsity'  # key of a checkpoint
_LEAST_PRUNE_RATE = 0.005  # the prune rate at the end of training
_LARGE_KERNELS = 'large_kernel.LoRA'


class _GradientsOnly:
    """An optimizer wrapper for ``train_step`` that computes gradients and makes no step."""

    def optim_context(self, model: nn.Module) -> nullcontext:
        return nullcontext()

    def update_params(self, loss: Tensor) -> None:
        loss.backward()


def _pruned(mask: Tensor, weight: Tensor, count: int) -> Tensor:
    """Returns a copy of the mask with the ``count`` weights of the smallest magnitude removed."""
    magnitudes = weight.detach().abs().masked_fill(~mask, math.inf)
    flat = mask.flatten().clone()
    flat[magnitudes.flatten().topk(count, largest=False).indices] = False
    return flat.view(mask.shape)


def _grown(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns a copy of the mask with ``count`` random positions added to it."""
    flat = mask.flatten().clone()
    empty = flat.logical_not().nonzero().flatten()
    flat[empty[torch.randperm(len(empty), generator=generator, device=mask.device)[:count]]] = True
    return flat.view(mask.shape)


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Trains with dynamic sparsity, or fine-tunes sparse weights whose zeros stay where they are (``frozen``).

    The mask covers the parameters with two or four dimensions (linear layers, convolutions) of one module of the model.
    These are left out: frozen parameters; scales (at most one dimension is larger than 1); and parameters that are all
    zero when training starts, because SNIP and pruning by magnitude would remove all of their weights permanently.

    - At the first batch, SNIP scores each weight w by ``|w dL/dw|``, and the best weights of all layers together are
      kept. As in the official code, only the *number* of weights of each layer is taken from this; their positions are
      random. With DDP the gradient is averaged over the ranks.
    - After every step of the optimizer, weights outside of the mask are set to zero. With SGD their momentum is set to
      zero too. The moments of Adam are not changed, as in the official code.
    - Every ``update_frequency`` steps a fraction of each layer's weights, those of the smallest magnitude, is pruned,
      and the same number is grown at random positions. The fraction falls from ``prune_rate`` to 0.005 at the end of
      training, following a cosine. A weight that has just been pruned can be grown again, and then keeps its value.
      Other grown weights start at zero.

    The number of weights of each layer is constant; in the official code only its average is. The official code makes a
    layer dense if SNIP keeps at least 99 % of its weights; this one does not, so the total is exact. With DDP the masks
    of rank 0 are used. Masks are saved in checkpoints, and a resumed run continues as if it had not been interrupted.
    The averaged weights of an ``EMAHook`` are masked too: as in the official code, they are zero where a weight was
    pruned, and start from the weight's value where one was grown.

    According to the official README, SLaK-T was trained with ``prune_rate=0.5, update_frequency=2000``, and S and B
    with the defaults, all of them with sparse classifiers (``module=''``).

    Args:
        sparsity: Fraction of the weights that is zero, in (0, 1).
        prune_rate: Initial fraction of a layer's weights that an update prunes, in (0, 1].
        update_frequency: Number of optimizer steps between two updates of the mask. None for a constant mask.
        only_L: If True, masks only the stripes of large kernels (parameters with ``large_kernel.LoRA`` in their names).
        frozen: If True, the mask is constant: weights that are zero when training starts stay zero. For fine-tuning.
            ``sparsity``, ``prune_rate``, ``update_frequency`` and ``seed`` have no effect then.
        module: The dotted name of the module of the model to mask, ``''`` for the whole model.
        seed: Seed of the random positions, the same on every rank.

    Raises:
        ValueError: An argument is out of range; the model has no such module, or that has no such weights; or the
            checkpoint to resume from has no masks, or masks for other weights.
        TypeError: The run has several optimizers.
    """

    priority = 'HIGH'  # runs before hooks that read the weights after a step, such as EMAHook

    def __init__(self, sparsity: float = 0.4, prune_rate: float = 0.3, update_frequency: Optional[int] = 100,
                 only_L: bool = False, frozen: bool = False, module: str = 'backbone', seed: int = 0):
        if not 0 < sparsity < 1:
            raise ValueError(f'DynamicSparsityHook: sparsity must be in (0, 1), got {sparsity}')
        if not 0 < prune_rate <= 1:
            raise ValueError(f'DynamicSparsityHook: prune_rate must be in (0, 1], got {prune_rate}')
        if update_frequency is not None and update_frequency < 1:
            raise ValueError(f'DynamicSparsityHook: update_frequency must be positive or None, got {update_frequency}')
        self.sparsity = sparsity
        self.prune_rate = prune_rate
        self.update_frequency = update_frequency
        self.only_L = only_L
        self.frozen = frozen
        self.module = module
        self.seed = seed
        self.masks: Dict[str, Tensor] = {}
        self.steps = 0
        self._weights: Dict[str, nn.Parameter] = {}
        self._left_out: List[str] = []
        self._averages: List[Dict[str, nn.Parameter]] = []
        self._total_steps = 0
        self._loaded: Optional[dict] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the masks of the checkpoint until ``before_train``, where it is known whether the run is resumed."""
        self._loaded = checkpoint.get(SPARSITY)

    def before_train(self, runner: Runner) -> None:
        """Finds the weights to mask. Creates the masks if the run is resumed or the mask is frozen."""
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise TypeError('DynamicSparsityHook works with one optimizer, '
                            f'not with {type(runner.optim_wrapper).__name__}')
        self._weights = self._sparse_weights(runner.model)
        self._averages = [dict(hook.ema_model.module.get_submodule(self.module).named_parameters())
                          for hook in runner.hooks if isinstance(hook, EMAHook)]
        self._total_steps = math.ceil(runner.max_iters / runner.optim_wrapper._accumulative_counts)
        self.masks, self.steps = {}, 0
        if runner.iter and self._loaded is not None:
            self._resume(self._loaded)
        elif runner.iter and not self.frozen:
            raise ValueError('the checkpoint to resume from has no masks: it was not trained with DynamicSparsityHook. '
                             'To keep its zeros where they are, use frozen=True')
        else:
            self._leave_out([name for name, weight in self._weights.items() if not weight.detach().any()])
            if self.frozen:
                self.masks = {name: weight.detach() != 0 for name, weight in self._weights.items()}
        self._loaded = None
        if self.masks:
            self._report()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None) -> None:
        """Creates the first masks from the first batch."""
        if not self.masks:
            self._start(runner.model, data_batch)
            self._apply(runner.optim_wrapper.optimizer)
            self._report()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Applies the masks after the optimizer's step, and updates them every ``update_frequency`` steps."""
        if not runner.optim_wrapper.should_update():  # gradients were accumulated, and no step was made
            return
        self.steps += 1
        self._apply(runner.optim_wrapper.optimizer)
        if not self.frozen and self.update_frequency and self.steps % self.update_frequency == 0:
            self._update()
            self._apply(runner.optim_wrapper.optimizer)
        self._thin_averages()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Saves the masks and the number of steps, from which the schedule and the random numbers follow."""
        checkpoint[SPARSITY] = dict(steps=self.steps, masks={name: mask.cpu() for name, mask in self.masks.items()},
                                    left_out=self._left_out)

    def _sparse_weights(self, model: nn.Module) -> Dict[str, nn.Parameter]:
        """Returns the parameters that can be masked, by their names in the module."""
        model = network_of(model)
        try:
            module = model.get_submodule(self.module)
        except AttributeError:
            raise ValueError(f"DynamicSparsityHook: {type(model).__name__} has no module '{self.module}'; "
                             "name another, or '' for the whole model") from None
        weights = {name: p for name, p in module.named_parameters()
                   if p.requires_grad and p.dim() in (2, 4) and sum(size > 1 for size in p.shape) > 1
                   and (not self.only_L or _LARGE_KERNELS in name)}
        if not weights:
            kind = f"in its '{_LARGE_KERNELS}'" if self.only_L else 'of two or four dimensions'
            raise ValueError(f'DynamicSparsityHook: {type(module).__name__} has no weights {kind} that are trained')
        return weights

    def _leave_out(self, names: List[str]) -> None:
        self._left_out = names
        self._weights = {name: weight for name, weight in self._weights.items() if name not in names}
        if names:
            print_log(f"DynamicSparsityHook leaves out what is zero throughout at the start: {', '.join(names)}",
                      logger='current')
        if not self._weights:
            raise ValueError('DynamicSparsityHook: all weights are zero throughout, there is nothing to choose from')

    def _resume(self, saved: dict) -> None:
        self._leave_out(saved.get('left_out', []))
        found, wanted = ({name: tuple(tensor.shape) for name, tensor in tensors.items()}
                         for tensors in (saved['masks'], self._weights))
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise ValueError(f'the masks to resume from do not fit the model: {len(names)} of them are missing, too '
                             f'many or of other shapes, {names[0]} among them. Resume with the model, module and '
                             'only_L of the first run')
        self.steps = saved['steps']
        self.masks = {name: saved['masks'][name].to(weight.device) for name, weight in self._weights.items()}

    def _generator(self) -> torch.Generator:
        """Returns a generator seeded by the current step, so that no generator state has to be saved."""
        device = next(iter(self._weights.values())).device
        return torch.Generator(device).manual_seed(self.seed + self.steps)

    def _start(self, model: nn.Module, data_batch: dict) -> None:
        """Creates masks: the number of weights of each layer is that of SNIP, and their positions are random."""
        scores = self._snip(model, data_batch)
        kept = torch.zeros(sum(map(torch.numel, scores)), dtype=torch.bool, device=scores[0].device)
        kept[torch.cat(scores).topk(round(len(kept) * (1 - self.sparsity))).indices] = True
        generator = self._generator()
        for (name, weight), best in zip(self._weights.items(), kept.split([len(score) for score in scores])):
            nothing = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
            self.masks[name] = _grown(nothing, int(best.sum()), generator)
        self._agree()

    def _snip(self, model: nn.Module, data_batch: dict) -> List[Tensor]:
        """Returns the scores ``|w dL/dw|`` on one batch, one 1-D tensor for each weight. Does not change the model."""
        model = copy.deepcopy(network_of(model))
        model.zero_grad()
        # The batch is copied because preprocessing may modify it. The class's train_step is called because a compiled
        # one is an attribute of the instance, bound to the original model.
        type(model).train_step(model, copy.deepcopy(data_batch), optim_wrapper=_GradientsOnly())
        parameters = dict(model.get_submodule(self.module).named_parameters())
        scores = []
        for weight in map(parameters.get, self._weights):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            all_reduce(gradient, op='mean')
            scores.append((weight * gradient).detach().abs().flatten())
        return scores

    def _update(self) -> None:
        """Prunes and grows each layer at the rate of the current step."""
        cosine = (1 + math.cos(math.pi * self.steps / self._total_steps)) / 2
        rate = _LEAST_PRUNE_RATE + (self.prune_rate - _LEAST_PRUNE_RATE) * cosine
        moved, generator = 0, self._generator()
        for name, weight in self._weights.items():
            before = self.masks[name]
            count = math.ceil(rate * int(before.sum()))
            self.masks[name] = _grown(_pruned(before, weight, count), count, generator)
            moved += int((self.masks[name] & ~before).sum())
        self._agree()
        print_log(f'dynamic sparsity: {moved:,} weights moved at step {self.steps}, prune rate {rate:.3f}',
                  logger='current')

    def _agree(self) -> None:
        """Broadcasts the masks of rank 0: ranks may select different weights where magnitudes are equal."""
        for mask in self.masks.values():
            broadcast(mask.view(torch.uint8))

    @torch.no_grad()
    def _apply(self, optimizer: torch.optim.Optimizer) -> None:
        for name, weight in self._weights.items():
            weight.mul_(self.masks[name])
            momentum = optimizer.state.get(weight, {}).get('momentum_buffer')
            if momentum is not None:
                momentum.mul_(self.masks[name])

    @torch.no_grad()
    def _thin_averages(self) -> None:
        """Masks the averaged weights before their update. Grown ones start from the current value of the weight."""
        for average in self._averages:
            for name, weight in self._weights.items():
                mean = average[name]
                mean.copy_(torch.where(mean == 0, weight.to(mean), mean)).mul_(self.masks[name])

    def _report(self) -> None:
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        total = sum(mask.numel() for mask in self.masks.values())
        if kept == total:
            print_log('DynamicSparsityHook: no weight is zero, so there is nothing to keep so; were sparse weights '
                      'loaded?', logger='current', level=logging.WARNING)
        else:
            print_log(f'sparsity: {kept:,} of {total:,} weights are kept, {kept / total:.1%}, '
                      f'in {len(self.masks)} layers', logger='current')
