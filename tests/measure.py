"""Run a command; print its wall time and its peak memory, all its processes added up.

Anonymous memory (RssAnon) is what a program needs; pages of mapped files (RssFile), which the
system may drop, are given apart. Sampled every 20 ms; Linux.

    python tests/measure.py python preprocess.py
"""

import subprocess
import sys
import time
from pathlib import Path


def main():
    returncode, seconds, peaks = measure(sys.argv[1:])
    print(
        f"{seconds:.1f} s, peak anonymous memory {peaks['RssAnon'] / 1e6:.0f} MB, "
        f"mapped files {peaks['RssFile'] / 1e6:.0f} MB",
        file=sys.stderr,
    )
    sys.exit(returncode)


def measure(command, **options):
    """Run a command to its end: (exit status, seconds, {"RssAnon": bytes, "RssFile": bytes}).

    options: for subprocess.Popen.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, **options)
    peaks = {"RssAnon": 0, "RssFile": 0}
    while process.poll() is None:
        for kind, size in memory(process.pid).items():
            peaks[kind] = max(peaks[kind], size)
        time.sleep(0.02)
    return process.returncode, time.perf_counter() - begin, peaks


def memory(pid):
    """{"RssAnon": bytes, "RssFile": bytes} of a process and all below it."""
    sizes = {"RssAnon": 0, "RssFile": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            kind, _, size = line.partition(":")
            if kind in sizes:
                sizes[kind] += int(size.split()[0]) * 1024
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                for kind, size in memory(child).items():
                    sizes[kind] += size
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile
    return sizes


if __name__ == "__main__":
    main()
