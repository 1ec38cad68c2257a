"""The same embedding by another way of computing it: padded, in chunks, folded, in 16 bits, by OpenVINO."""
