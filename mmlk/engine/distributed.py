"""Distributed training on CPUs, under Slurm and with FSDP, as far as mmengine does not support it.

On a machine without a GPU, mmengine's launcher needs a GPU for each process, its model wrapper needs a GPU device id,
and torch's SyncBatchNorm raises an error for CPU tensors. :func:`use_gloo` adapts a config to such a machine; on other
machines it does nothing. :func:`read_slurm` sets the environment variables of torch for a process of a Slurm job.
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
    """Sums a tensor over all processes. Backward sums the gradient too, because every process's loss uses the sum."""

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
    """SyncBatchNorm for tensors on a CPU. The batch size N may differ between the processes.

    The mean and the variance of the whole batch are computed in float32 (in float64 for float64 input), in two passes:
    first the mean over all processes, then the variance around it. The class does not inherit from
    ``nn.SyncBatchNorm``, because DistributedDataParallel raises an error for that class on a CPU.

    Shape:
        Input and output: (N, C, ...).
    """

    process_group = None  # all processes

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f'expected (N, C, ...), got {input.ndim} dimensions')

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes with the batch statistics of all processes in training mode, with running statistics in eval."""
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
    """mmengine's ``MMDistributedDataParallel`` for a model on a CPU.

    Each SyncBatchNorm of the model is converted to :class:`CPUSyncBatchNorm`, in-place.

    Args:
        module: The model to train, on the CPU.
        device_ids: Must be None. The config has to set it, because mmengine's default is the GPU of the process.
        kwargs: Passed to ``MMDistributedDataParallel``.
    """

    def __init__(self, module: nn.Module, device_ids: None = None, **kwargs):
        for child in module.modules():
            if isinstance(child, nn.SyncBatchNorm):
                # both classes have the same state, so parameters, buffers and hooks are kept
                child.__class__ = CPUSyncBatchNorm
        super().__init__(module=module, device_ids=device_ids, **kwargs)


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """mmengine's ``FSDPStrategy`` with two corrections.

    - Resuming works. mmengine passes the optimizer's state to torch in an argument order that torch 2.1 removed.
    - ``load_from`` a file is checked as :func:`mmlk.weights.load` does, with the same errors; mmengine ignores missing
      weights. A folder of sharded weights is loaded as in mmengine.
    """

    _resuming = False

    def build_model(self, model: Union[nn.Module, dict]) -> nn.Module:
        """Builds the model, and keeps a copy of it on the meta device, with the shapes before FSDP shards the tensors.

        Returns:
            The model.
        """
        model = super().build_model(model)
        tensors = [*model.parameters(), *model.buffers()]
        outlines = (tensor.detach().to('meta') for tensor in tensors)
        self._outline = copy.deepcopy(model, {
            id(tensor): nn.Parameter(outline, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else outline
            for tensor, outline in zip(tensors, outlines)})
        return model

    def resume(self, filename: str, **kwargs) -> dict:
        """Resumes as mmengine does.

        Returns:
            The contents of the checkpoint.

        Raises:
            CheckpointError: The checkpoint was written between two updates of ``accumulative_counts``. mmengine's FSDP
                checkpoints do not hold the accumulated gradients.
        """
        self._resuming = True
        checkpoint = super().resume(filename, **kwargs)
        done, steps = checkpoint['meta']['iter'], getattr(self.optim_wrapper, '_accumulative_counts', 1)
        if done % steps and done != self.dispatch_kwargs.get('max_iters'):
            raise CheckpointError(f'{filename} was written after {done} iterations, between two updates of '
                                  f'accumulative_counts={steps}, without the gradients accumulated so far. Resume from '
                                  f'a checkpoint after a multiple of {steps} iterations')
        return checkpoint

    def load_checkpoint(self, filename: str, *, callback: Optional[Callable] = None, **kwargs) -> dict:
        """Loads a checkpoint. A file from which training starts must fill the model, except layers of heads that are
        for another number of classes.

        Returns:
            The contents of the checkpoint.

        Raises:
            WeightsError: The file does not fill the model.
        """
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
        """Loads the optimizer's state, either of this process's shard or, for full checkpoints, of the whole model."""
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict))


_joined = False  # whether use_gloo has initialized the process group


def leave() -> None:
    """Ends the process with exit status 0, if :func:`use_gloo` has initialized its process group.

    Exit handlers run, but the interpreter is not finalized: gloo's threads may still release tensors at that time,
    which aborts the process.
    """
    if _joined:
        run_exit_handlers()  # of data loaders, log files and others
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def first_node(nodes: str) -> str:
    """Returns the first node of a node list of Slurm: ``n01`` for ``n[01-03,7],m``."""
    first = re.match(r'(?:[^,[]|\[[^]]*\])*', nodes)[0]
    return re.sub(r'\[(\d+)[^]]*\]', r'\1', first)


def read_slurm(port: Optional[int] = None) -> None:
    """Sets the environment variables of ``torch.distributed`` for a process that ``srun`` has started.

    The variables are ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. The last two are
    kept if they are set. Otherwise the address is the first node of the job step, and the port, 15000 to 29999, is
    computed from the job id and the step id, so that two jobs on one node use different ports.

    Args:
        port: Overrides ``MASTER_PORT``.

    Raises:
        ValueError: The process was not started by ``srun``.
    """
    # SLURM_PROCID alone is also set in a batch script. Only processes that srun started have all of these.
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
    """Prepares distributed training on CPUs: initializes the gloo process group and changes the config, in-place.

    Does nothing if the launcher is ``'none'`` or the device is not the CPU.

    Args:
        cfg: A config with ``launcher``. mmengine's data parallel model wrapper is replaced with
            :class:`CPUDistributedDataParallel`; ``FSDPStrategy`` gets the CPU as its device.

    Raises:
        ValueError: The launcher is not ``'none'``, ``'pytorch'`` or ``'slurm'``.
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
        holder[key] = dict(wrapper, device_id='cpu')  # FSDP uses a CPU only if the device is given
        if strategy.get('state_dict_cfg') == 'full':
            # mmengine's 'full' offloads to the CPU. The shards are there already, and FSDP would free them while it
            # reads them.
            strategy.state_dict_cfg = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True))
    elif wrapper.get('type') is None or type_of(wrapper, 'MODEL_WRAPPERS') is MMDistributedDataParallel:
        # the same defaults as mmengine's for a config without a model wrapper
        defaults = dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        holder[key] = {**defaults, **wrapper, 'type': 'mmlk.CPUDistributedDataParallel', 'device_ids': None}
