"""The process and the machine of a run: devices, signals, memory, compilation cache, faults of other libraries."""
