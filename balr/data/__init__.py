"""Corpora: which utterances there are, and their waveforms."""
