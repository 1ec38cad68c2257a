"""What embeddings are worth: trials, scores, metrics, calibration, and the figures of the page."""
