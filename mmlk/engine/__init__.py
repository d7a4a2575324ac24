from .hooks import MemoryFormatHook, MergeBranchesHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor', 'MemoryFormatHook', 'MergeBranchesHook']
