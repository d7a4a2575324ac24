"""Demo scenes, corruptions of images, and checks of the data that a config points at."""
