"""Models: from a waveform to a speaker embedding."""
