"""Shape bias of one or more classifiers on cue-conflict images, per category, beside that of people.

``python tools/shape_bias.py --help`` describes the options.
``mmlk shape-bias`` is the same command, whose code is mmlk/cli/shape_bias.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('shape-bias')


if __name__ == '__main__':
    main()
