"""What a test reports: figures of each class and each image, calibration, and whether a difference is real."""
