"""Draw image, ground truth and prediction side by side for some test images of a config.

``python tools/show_predictions.py --help`` describes the options.
``mmlk show-predictions`` is the same command, whose code is mmlk/cli/show_predictions.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('show-predictions')


if __name__ == '__main__':
    main()
