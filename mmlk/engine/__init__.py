from .distributed import CPUDistributedDataParallel, FSDPStrategy
from .hooks import (BatchSizeHook, BusyMachineHook, CheckLabelsHook, CheckSamplesHook, MemoryFormatHook,
                    MergeBranchesHook)
from .layer_decay import LayerDecayOptimWrapperConstructor
from .precision import BFloat16OptimWrapper
from .probe import FeatureCacheHook, ProbeReportHook
from .resuming import CheckpointError, CheckpointHook
from .runner import ResumableRunner
from .sparsity import DynamicSparsityHook

__all__ = ['BFloat16OptimWrapper', 'BatchSizeHook', 'BusyMachineHook', 'CPUDistributedDataParallel',
           'CheckLabelsHook', 'CheckSamplesHook', 'CheckpointError', 'CheckpointHook', 'DynamicSparsityHook',
           'FSDPStrategy', 'FeatureCacheHook', 'LayerDecayOptimWrapperConstructor', 'MemoryFormatHook',
           'MergeBranchesHook', 'ProbeReportHook', 'ResumableRunner']
