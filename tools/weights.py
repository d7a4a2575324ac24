"""Pretrained and trained weights: what there is, get it, look into a file.

``python tools/weights.py --help`` describes the options.
``mmlk weights`` is the same command, whose code is mmlk/cli/weights.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('weights')


if __name__ == '__main__':
    main()
