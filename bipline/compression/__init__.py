"""From texts to a smaller model: calibrate, score, allocate, prune."""
