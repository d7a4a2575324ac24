"""The model inside its wrappers."""
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def network_of(model: nn.Module) -> nn.Module:
    """The segmentor or detector in a runner's model, which data parallelism and test-time augmentation may wrap."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
