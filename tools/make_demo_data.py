"""Write synthetic demo scenes in the folder layout of a real dataset.

``python tools/make_demo_data.py --help`` describes the options.
``mmlk demo-data`` is the same command, whose code is mmlk/cli/make_demo_data.py.
"""
from mmlk.cli import run_tool


def main() -> None:
    run_tool('demo-data')


if __name__ == '__main__':
    main()
