from .hooks import MemoryFormatHook, MergeBranchesHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .resuming import CheckpointError, CheckpointHook
from .runner import ResumableRunner
from .sparsity import DynamicSparsityHook

__all__ = ['CheckpointError', 'CheckpointHook', 'DynamicSparsityHook', 'LayerDecayOptimWrapperConstructor',
           'MemoryFormatHook', 'MergeBranchesHook', 'ResumableRunner']
