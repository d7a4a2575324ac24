"""Several processes: what mmengine's launchers, model wrapper and SyncBN leave out.

On a machine whose device is the CPU, mmengine's launcher asks for a GPU per process, its wrapper names one, and torch's
SyncBatchNorm refuses CPU tensors. :func:`use_gloo` mends a config for such a machine and leaves every other as it is.
:func:`read_slurm` tells torch where the processes of a Slurm job meet.
"""
import copy
import datetime
import os
import os.path as osp
import re
import sys
from typing import Callable, Optional, Union

import torch
import torch.distributed as dist
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mmlk._torch_private import BatchNorm, run_exit_handlers
from mmlk._types import is_a, type_of
from mmlk.registry import MODEL_WRAPPERS, STRATEGIES
from mmlk.weights.loading import compare_weights

from .resuming import CheckpointError


class _AllReduceSum(Function):
    """Sum of a tensor over the processes; so is its gradient, as each process's loss depends on the sum."""

    @staticmethod
    def forward(ctx, tensor: Tensor, group) -> Tensor:
        ctx.group = group
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor, group=group)
        return tensor

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _AllReduceSum.apply(grad, ctx.group), None


class CPUSyncBatchNorm(BatchNorm):
    """torch's SyncBatchNorm for tensors on a CPU, (N, C, ...); processes may have different N.

    Mean and variance are of the whole batch in float32 or wider, in two passes, the variance about the common mean. It
    is no subclass of ``nn.SyncBatchNorm``, which DistributedDataParallel refuses on a CPU.
    """

    process_group = None  # the whole world

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f'expected (N, C, ...), got {input.ndim} dimensions')

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; over the processes in training, by the running statistics in eval mode."""
        group = self.process_group or dist.group.WORLD
        if not self.training or not dist.is_initialized() or dist.get_world_size(group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = input if input.dtype == torch.float64 else input.float()
        total = _AllReduceSum.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]), group)
        count = total[-1]
        mean = total[:-1] / count
        x = x - mean.view(shape)
        variance = _AllReduceSum.apply(x.square().sum(axes), group) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return torch.addcmul(self.bias.view(shape), x, (scale * self.weight).view(shape)).to(input.dtype)
        return (x * scale.view(shape)).to(input.dtype)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's data parallel wrapper for a module on a CPU, whose SyncBatchNorm becomes :class:`CPUSyncBatchNorm`.

    Args:
        module: Model to train, on the CPU.
        device_ids: None; mmengine names the GPU of the process where a config does not say None.
        kwargs: To ``MMDistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, device_ids: None = None, **kwargs):
        for child in module.modules():
            if isinstance(child, nn.SyncBatchNorm):
                child.__class__ = CPUSyncBatchNorm  # has the same state: parameters, buffers and hooks stay
        super().__init__(module=module, device_ids=device_ids, **kwargs)


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """mmengine's, which resumes: it hands torch the optimizer's state in an order of arguments that torch 2.1 ended.

    Training starts from a file by :func:`mmlk.weights.load`, with its errors, where mmengine passes over what the file
    lacks; from a folder of shares as with mmengine.
    """

    _resuming = False

    def build_model(self, model: Union[nn.Module, dict]) -> nn.Module:
        """Build it, and keep what its tensors are before they are divided."""
        model = super().build_model(model)
        tensors = [*model.parameters(), *model.buffers()]
        outlines = (tensor.detach().to('meta') for tensor in tensors)
        self._outline = copy.deepcopy(model, {
            id(tensor): nn.Parameter(outline, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else outline
            for tensor, outline in zip(tensors, outlines)})
        return model

    def resume(self, filename: str, **kwargs) -> dict:
        """As mmengine's, where no gradients were accumulated since an update: its checkpoints do not hold them."""
        self._resuming = True
        checkpoint = super().resume(filename, **kwargs)
        done, steps = checkpoint['meta']['iter'], getattr(self.optim_wrapper, '_accumulative_counts', 1)
        if done % steps and done != self.dispatch_kwargs.get('max_iters'):
            raise CheckpointError(f'{filename} was written after {done} iterations, between two updates of '
                                  f'accumulative_counts={steps}, without the gradients accumulated so far. Resume from '
                                  f'a checkpoint after a multiple of {steps} iterations')
        return checkpoint

    def load_checkpoint(self, filename: str, *, callback: Optional[Callable] = None, **kwargs) -> dict:
        """As mmengine's; what training starts from must fill the model, but for layers of other classes."""
        if self._resuming or osp.isdir(filename):
            return super().load_checkpoint(filename, callback=callback, **kwargs)
        report, values = compare_weights(self._outline, filename, other_classes=True)
        checkpoint = dict(state_dict=values)
        if callback is not None:
            callback(checkpoint)
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT):
            self.model.load_state_dict(checkpoint.pop('state_dict'), strict=False)
        print_log(str(report), logger='current')
        return checkpoint

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state, of this process's shares or, where checkpoints are whole, of all."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict))


_joined = False  # whether use_gloo has


def leave() -> None:
    """End a process that is done, if :func:`use_gloo` has joined it to others, without taking the interpreter down:
    gloo's threads may still let go of tensors then, and abort the process."""
    if _joined:
        run_exit_handlers()  # of data loaders, log files and such
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def first_node(nodes: str) -> str:
    """The first of Slurm's list of nodes: ``n01`` of ``n[01-03,7],m``."""
    first = re.match(r'(?:[^,[]|\[[^]]*\])*', nodes)[0]
    return re.sub(r'\[(\d+)[^]]*\]', r'\1', first)


def read_slurm(port: Optional[int] = None) -> None:
    """Set torch's ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` for a process that
    ``srun`` has started.

    ``MASTER_ADDR`` and ``MASTER_PORT`` stay where they are set. Otherwise they are the step's first node and a port
    from 15000 to 29999 made of the numbers of job and step, so that jobs on one node do not take each other's.

    Args:
        port: Takes the place of ``MASTER_PORT``.

    Raises:
        ValueError: ``srun`` has not started this process.
    """
    # The script of a job, too, has SLURM_PROCID: only processes of srun have all of these.
    names = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_JOB_ID', 'SLURM_STEP_ID', 'SLURM_STEP_NODELIST')
    lacking = [name for name in names if name not in os.environ]
    if lacking:
        raise ValueError(f'the slurm launcher is for processes that srun starts, and {lacking[0]} is not set: start '
                         'them with srun, as tools/slurm_train.sh does')
    rank, world_size, local_rank, job, step, nodes = (os.environ[name] for name in names)
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=local_rank)
    os.environ.setdefault('MASTER_ADDR', first_node(nodes))
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    os.environ.setdefault('MASTER_PORT', str(15000 + (16 * int(job) + int(step)) % 15000))


def use_gloo(cfg: Config) -> None:
    """Where several processes are launched and the device is the CPU: join them by gloo, and fit the config to it.

    Args:
        cfg: Config with ``launcher`` set; its model wrapper, if it is mmengine's data parallel one, is replaced by
            :class:`CPUDistributedDataParallel`.

    Raises:
        ValueError: Another launcher than ``'none'``, ``'pytorch'`` and ``'slurm'``.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    if cfg.launcher not in ('pytorch', 'slurm'):
        raise ValueError(f'the {cfg.launcher} launcher of mmengine takes a GPU per process and this machine has none: '
                         'start the processes with torchrun, as tools/dist_train.sh does, or under Slurm')
    if not dist.is_initialized():
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        dist.init_process_group('gloo', timeout=timeout and datetime.timedelta(seconds=timeout))
        global _joined
        _joined = True
    strategy = cfg.get('strategy')
    holder, key = (cfg, 'model_wrapper_cfg') if strategy is None else (strategy, 'model_wrapper')
    wrapper = holder.get(key) or {}
    if is_a(strategy, 'FSDPStrategy', 'STRATEGIES'):
        holder[key] = dict(wrapper, device_id='cpu')  # FSDP takes a CPU only by name
        if strategy.get('state_dict_cfg') == 'full':
            # mmengine's 'full' offloads to the CPU, which is where the shares are: FSDP would free what it reads.
            strategy.state_dict_cfg = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True))
    elif wrapper.get('type') is None or type_of(wrapper, 'MODEL_WRAPPERS') is MMDistributedDataParallel:
        # broadcast_buffers and find_unused_parameters as mmengine sets them where a config names no wrapper
        defaults = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        holder[key] = {**defaults, **wrapper, 'type': 'mmlk.CPUDistributedDataParallel', 'device_ids': None}
