"""Predict images, folders of images and videos with a trained model.

``python tools/predict.py --help`` describes the options.
``mmlk predict`` is the same command, whose code is mmlk/cli/predict.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('predict')


if __name__ == '__main__':
    main()
