"""The share of each class in images, by a trained segmentor.

python examples/predict_segmentation.py CONFIG CHECKPOINT IMAGE ...
"""
import sys

import numpy as np

from mmlk.predict import Predictor


def main() -> None:
    config, checkpoint, *paths = sys.argv[1:]
    predictor = Predictor(config, checkpoint)
    for path in paths:
        labels = predictor(predictor.read(path)).labels  # (H, W)
        shares = np.bincount(labels.ravel(), minlength=len(predictor.classes)) / labels.size
        print(path, *(f'{name} {share:.1%}' for name, share in zip(predictor.classes, shares) if share))


if __name__ == '__main__':
    main()
