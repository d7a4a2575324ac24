"""Dynamic sparsity: a mask holds a share of the weights at zero, and moves while the network learns.

SLaK (arXiv:2207.03620) trains so, after SET (Mocanu et al., Nature Communications 2018) and SNIP (arXiv:1810.02340).
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

SPARSITY = 'dynamic_sparsity'  # in a checkpoint
_LEAST_PRUNE_RATE = 0.005  # what the cosine falls to
_LARGE_KERNELS = 'large_kernel.LoRA'


class _GradientsOnly:
    """Stands for the optimizer in ``train_step``, and steps nowhere."""

    def optim_context(self, model: nn.Module) -> nullcontext:
        return nullcontext()

    def update_params(self, loss: Tensor) -> None:
        loss.backward()


def _pruned(mask: Tensor, weight: Tensor, count: int) -> Tensor:
    """The mask without the ``count`` smallest of its weights."""
    magnitudes = weight.detach().abs().masked_fill(~mask, math.inf)
    flat = mask.flatten().clone()
    flat[magnitudes.flatten().topk(count, largest=False).indices] = False
    return flat.view(mask.shape)


def _grown(mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The mask with ``count`` more places, drawn from the empty ones."""
    flat = mask.flatten().clone()
    empty = flat.logical_not().nonzero().flatten()
    flat[empty[torch.randperm(len(empty), generator=generator, device=mask.device)[:count]]] = True
    return flat.view(mask.shape)


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Keep a share of the weights at zero, and let which ones move during training; or only keep them there.

    The weights are the parameters of two or four dimensions (linear layers, convolutions) in one module of the model.
    Left out are frozen ones, scales (at most one dimension is larger than 1), and those that are zero throughout when
    training starts, of which SNIP and magnitude would keep nothing for good.

    - At the first batch SNIP scores each weight w by ``|w dL/dw|``, and keeps the best of all layers together. As in
      the official code only the *number* of a layer's weights is taken from that; which ones they are is drawn at
      random. Under DDP the gradient is the average over the ranks.
    - After every step of the optimizer what the mask has cut is set to zero, and so is its momentum if the optimizer is
      SGD. The moments of Adam are left alone, as in the official code.
    - Every ``update_frequency`` steps each layer loses the smallest of its weights, a share that falls as a cosine from
      ``prune_rate`` to 0.005 at the end of training, and gains as many at random places. A place just cut may be
      drawn again and keeps its value then; others start at zero.

    Layers keep their number of weights exactly, where the official code keeps it on average. A layer that SNIP leaves
    at least 99 % of its weights is dense in the official code; here it is not treated apart, so that the total is
    exact. Under DDP the masks are those of the first rank. They are saved in checkpoints; a run that is resumed goes
    on as if it had not stopped. The average of an ``EMAHook`` has the same masks: as in the official code it is zero
    where the weight has been cut, and begins with the weight's value where one has grown.

    As its README says, SLaK-T was trained with ``prune_rate=0.5, update_frequency=2000``, S and B with the defaults,
    all with sparse classifiers (``module=''``).

    Args:
        sparsity: Share of the weights that is zero, in (0, 1).
        prune_rate: Share of a layer's weights that the first update would cut, in (0, 1].
        update_frequency: Steps of the optimizer between updates. None for a mask that never moves.
        only_L: Take the stripes of large kernels only (``large_kernel.LoRA``).
        frozen: Find the mask in the weights that training starts from, what is zero staying zero; for fine-tuning.
            Neither ``sparsity`` nor ``prune_rate``, ``update_frequency`` and ``seed`` have any part in it then.
        module: Which module of the model: a dotted name, ``''`` for the whole model.
        seed: Of the random places; the same on every rank.

    Raises:
        ValueError: An argument is out of range, the model has no such module or the module no such weights, or a
            checkpoint to resume from has no masks or those of other weights.
        TypeError: There are several optimizers.
    """

    priority = 'HIGH'  # before any hook that reads the weights after a step, EMAHook among them

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
        """Remember the masks; whether this is a resumed run is not known yet."""
        self._loaded = checkpoint.get(SPARSITY)

    def before_train(self, runner: Runner) -> None:
        """Find the weights, and their masks where they need no data."""
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
        """Draw the first masks, on the first batch."""
        if not self.masks:
            self._start(runner.model, data_batch)
            self._apply(runner.optim_wrapper.optimizer)
            self._report()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Cut what the optimizer's step has brought back; update the masks when it is time."""
        if not runner.optim_wrapper.should_update():  # gradients were accumulated only
            return
        self.steps += 1
        self._apply(runner.optim_wrapper.optimizer)
        if not self.frozen and self.update_frequency and self.steps % self.update_frequency == 0:
            self._update()
            self._apply(runner.optim_wrapper.optimizer)
        self._thin_averages()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the masks and the place in the schedule, from which the random numbers follow."""
        checkpoint[SPARSITY] = dict(steps=self.steps, masks={name: mask.cpu() for name, mask in self.masks.items()},
                                    left_out=self._left_out)

    def _sparse_weights(self, model: nn.Module) -> Dict[str, nn.Parameter]:
        """The weights by their name in the module."""
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
        """Random numbers of the current step: there is no state to save."""
        device = next(iter(self._weights.values())).device
        return torch.Generator(device).manual_seed(self.seed + self.steps)

    def _start(self, model: nn.Module, data_batch: dict) -> None:
        """SNIP's number of weights for each layer, at random places of it."""
        scores = self._snip(model, data_batch)
        kept = torch.zeros(sum(map(torch.numel, scores)), dtype=torch.bool, device=scores[0].device)
        kept[torch.cat(scores).topk(round(len(kept) * (1 - self.sparsity))).indices] = True
        generator = self._generator()
        for (name, weight), best in zip(self._weights.items(), kept.split([len(score) for score in scores])):
            nothing = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
            self.masks[name] = _grown(nothing, int(best.sum()), generator)
        self._agree()

    def _snip(self, model: nn.Module, data_batch: dict) -> List[Tensor]:
        """``|w dL/dw|`` on one batch, flat, in the order of the weights; the model itself stays as it is."""
        model = copy.deepcopy(network_of(model))
        model.zero_grad()
        # Preprocessing may write into the batch. A compiled train_step is an attribute, bound to the original.
        type(model).train_step(model, copy.deepcopy(data_batch), optim_wrapper=_GradientsOnly())
        parameters = dict(model.get_submodule(self.module).named_parameters())
        scores = []
        for weight in map(parameters.get, self._weights):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            all_reduce(gradient, op='mean')
            scores.append((weight * gradient).detach().abs().flatten())
        return scores

    def _update(self) -> None:
        """Prune and grow at the rate of the current step."""
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
        """Take the first rank's masks: ties may be broken in two ways."""
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
        """Give the averages the masks before they take in the step, and weights that have grown a start."""
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
