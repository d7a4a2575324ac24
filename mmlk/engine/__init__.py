from .hooks import MergeBranchesHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = ['LayerDecayOptimWrapperConstructor', 'MergeBranchesHook']
