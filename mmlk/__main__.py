"""``python -m mmlk`` is the command ``mmlk``."""
from mmlk.cli import main

main()
