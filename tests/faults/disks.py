"""Full and read-only disks, as tmpfs in a namespace of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

from faults.reference import Finding, Reference, one_line

FULL_DISK = """
mount -t tmpfs -o size=$2k none "$1" && cd "$1" || exit 99
"${@:3}" --workdir run > "$1.out" 2> "$1.err"; echo $? > "$1.code"
mount -o remount,size=50m "$1"
"${@:3}" --workdir run > "$1.out2" 2> "$1.err2"; echo $? > "$1.code2"
cp -r run "$1.run"
"""

READ_ONLY_DISK = """
mount -t tmpfs none "$1" && cp -r "$2" "$1/run" && mount -o remount,ro "$1" || exit 99
"${@:3}" --workdir "$1/run" 2>&1; echo "exit code $?"
"""

SHARES = (0.02, 0.06, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.98)
"""Sizes of the disk, in what the finished run takes: each is full at another moment, from the first file on to the last
checkpoint."""
PAGE = 4096
"""Bytes that each file of a tmpfs takes at least, and in multiples."""


def in_namespace(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run bash as the root of a namespace, where it may mount; exit code 99 if it may not."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # it changes the folder
    )


def full_disk(reference: Reference, place: Path) -> Iterator[Finding]:
    """Each run fails on a disk that is too small, gets more space, and goes on."""
    files = [file for file in reference.workdir.rglob("*") if file.is_file()]
    pages = sum(-(-file.stat().st_size // PAGE) for file in files)
    for kilobytes in (max(1, round(share * pages)) * PAGE // 1024 for share in SHARES):
        disk = place / f"disk{kilobytes}"
        disk.mkdir()
        command = [sys.executable, "-m", "jaxresnet.train", "--config", reference.config]
        if in_namespace(FULL_DISK, disk, kilobytes, *command).returncode == 99:
            yield Finding("a full disk", "not tried: this system has no user namespaces with mounts", [])
            return
        text = {name: Path(f"{disk}.{name}").read_text() for name in ("err", "code", "out2", "err2", "code2")}
        problems = one_line(text["err"], "No space left on device")
        if text["code"].strip() != "1" or text["code2"].strip() != "0":
            problems.append(f"exit codes {text['code']}, {text['code2']}")
        anew = "no checkpoint was complete when the run was stopped: starting anew\n"
        problems += one_line(f"{text['err2'].removeprefix(anew)}line\n", "line")
        problems += reference.problems(Path(f"{disk}.run"))
        resumed = [line for line in text["out2"].splitlines() if line.startswith("resuming")]
        yield Finding(
            f"a disk of {kilobytes} KiB, then space",
            f"one line of error; then {(*resumed, 'from the start')[0]}",
            problems,
        )


def read_only_disk(reference: Reference, place: Path) -> Iterator[Finding]:
    """A run is to go on where nothing can be written."""
    disk = place / "read_only"
    disk.mkdir()
    command = [sys.executable, "-m", "jaxresnet.train", "--epochs", "5"]
    process = in_namespace(READ_ONLY_DISK, disk, reference.workdir, *command)
    if process.returncode == 99:
        yield Finding("a read-only disk", "not tried: this system has no user namespaces with mounts", [])
        return
    _, *error, code = process.stdout.splitlines()
    problems = one_line("\n".join(error), "Read-only file system")
    yield Finding("a read-only disk", code, problems + ([] if code == "exit code 1" else [code]))
