"""How the runs of a sweep are trained: each in a process of its own, in turn or several at a time on Ray."""
