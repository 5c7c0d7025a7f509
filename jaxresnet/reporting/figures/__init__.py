"""The figures of a report, drawn with matplotlib from plain values. Nothing here reads or writes a run's folder."""
