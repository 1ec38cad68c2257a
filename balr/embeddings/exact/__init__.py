"""Faster or smaller ways to compute the same embedding: padded, chunked, folded, in 16 bits, by OpenVINO."""
