from .hooks import MemoryFormatHook, MergeBranchesHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .sparsity import DynamicSparsityHook

__all__ = ['DynamicSparsityHook', 'LayerDecayOptimWrapperConstructor', 'MemoryFormatHook', 'MergeBranchesHook']
