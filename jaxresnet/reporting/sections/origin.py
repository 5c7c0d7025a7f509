"""The section that says how a run was made: command, commit, versions, machine, times, and its whole configuration."""

from collections.abc import Iterable

from jaxresnet.config.files import dump_config
from jaxresnet.machine.environment import Start
from jaxresnet.reporting.page import Facts, Fold, Section
from jaxresnet.runs.groups import History
from jaxresnet.runs.records import InitialWeights


def origin_section(history: History) -> Section:
    """What is recorded of a run's starts, folded if it had several, and its whole configuration, folded as TOML."""
    starts = history.starts
    configuration = Fold("The whole configuration", text=dump_config(history.config))
    note = "No start is recorded: the run has no environment.json." if not starts else ""
    folds = []
    if len(starts) > 1:
        note = f"The run was started {len(starts)} times."
        folds = [
            Fold(f"Start {number}, {start.started}", start_facts(start))
            for number, start in enumerate(starts, 1)
        ]
    facts = start_facts(starts[0]) if len(starts) == 1 else ()
    facts = (*initial_facts(history.workdir.initial_weights()), *facts)
    return Section("How it was made", note, facts=facts, folds=[*folds, configuration])


def initial_facts(initial: InitialWeights | None) -> Facts:
    """Where the run's first weights come from, in words. Nothing if they were random."""
    if initial is None:
        return []
    taken = "the whole network" if initial.head else "all but the head"
    return [("initial weights", f"{initial.place}: {taken}; SHA-256 {initial.sha256}")]


def start_facts(start: Start) -> Facts:
    """What is recorded of one start, in words. What is not known is left out, but for times."""
    cores = [f"{start.physical_cores} cores"] if start.physical_cores else []
    cores += [f"{start.cpu_cores} logical CPUs"] if start.cpu_cores else []
    cores += [f"{start.available_cores} available"] if start.available_cores else []
    cpu = ", ".join([start.cpu or "unknown", *cores, *start.cpu_flags])
    known = [
        ("command", start.command),
        ("started", start.started),
        ("commit", _commit(start)),
        ("versions", ", ".join(f"{name} {version}" for name, version in start.versions.items())),
        ("devices", _counted(start.devices)),
        ("precision", start.precision),
        ("driver", start.driver),
        ("XLA flags", start.xla_flags),
        ("CPU", cpu),
        ("memory", start.memory_bytes and f"{start.memory_bytes / 2**30:,.1f} GiB"),
        (
            "peak memory of a device",
            start.peak_device_bytes and f"{start.peak_device_bytes / 2**30:,.2f} GiB",
        ),
        ("system", start.platform),
        ("time", _times(start)),
    ]
    return [(name, value) for name, value in known if value]


def _commit(start: Start) -> str:
    if not start.git:
        return "not in a git checkout"
    states = {True: ", with changes that are not committed", None: "; whether files differed is not known"}
    return f"{start.git.get('commit')}{states.get(start.git.get('dirty'), '')}"


def _counted(devices: Iterable[str]) -> str:
    """The devices with the number of each kind.

    >>> _counted(["cpu", "cpu"])
    '2 x cpu'
    """
    kinds = list(devices)
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _times(start: Start) -> str:
    times = {"training": start.train_seconds, "compiling": start.compile_seconds, "in all": start.seconds}
    return ", ".join(f"{name} {_duration(seconds)}" for name, seconds in times.items())


def _duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> _duration(41.25), _duration(754.0), _duration(7_508.0), _duration(None)
    ('41.2 s', '12.6 min', '2.1 h', 'not recorded')
    """
    if seconds is None:
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
