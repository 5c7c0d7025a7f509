"""The network: its blocks and how they are put together, a description of its layers, fast convolutions for a CPU."""
