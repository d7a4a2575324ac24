"""Predictions of a trained model on any image, from a config and its checkpoint, or from an exported file alone::

    predictor = Predictor('config.py', 'checkpoint.pth')  # or Predictor('model.onnx')
    prediction = predictor(image)  # a numpy array, RGB
    prediction.labels              # of a segmentor; boxes, scores, class_ids and masks of a detector

For an exported file neither mmcv nor mmseg nor mmdet is imported, and for an ONNX file PyTorch is not either.
"""
from .model import ImageError
from .prediction import MaskCrop, Prediction
from .predictor import Predictor

__all__ = ['ImageError', 'MaskCrop', 'Prediction', 'Predictor']
