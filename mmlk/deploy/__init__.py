"""Deployment: export to other formats, and checkpoints with merged branches."""
