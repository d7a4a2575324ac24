"""Train a segmentor or a detector.

``python tools/train.py --help`` describes the options.
``mmlk train`` is the same command, whose code is mmlk/cli/train.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('train')


if __name__ == '__main__':
    main()
