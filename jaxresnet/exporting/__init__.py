"""Trained networks in the formats of other programs: each is written, read again and compared with the original."""
