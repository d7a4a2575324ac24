"""Demo scenes, and checks of the data that a config points at."""
