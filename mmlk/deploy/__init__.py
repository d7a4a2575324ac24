"""What leaves training behind: export, and checkpoints with their branches merged."""
