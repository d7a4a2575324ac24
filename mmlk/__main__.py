"""``python -m mmlk`` runs the command ``mmlk``."""
from mmlk.cli import main

main()
