"""Every recorded version at one scale, each with the exact and with the recorded recurrence, and the gaps as a table.

One run folder for each; what is finished is not run again and what was interrupted goes on, so that the same line,
given again, ends what the first began. Prints the table in Markdown when all are done. Exit code 1 if a run failed.

    python benchmarks/recorded_line.py --out runs/pocket-line
    python benchmarks/recorded_line.py --scale smollm2 --versions v9 v12.1 v14.3 --out runs/smollm2-line data.path=FILE
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from asnn_goose.config_recorded import RECORDED_VERSIONS
from asnn_goose.report.recorded_table import gaps_table, our_runs
from asnn_goose.scales import SCALES

RECORD_ONLY = ("v4", "v5")
VERSIONS = tuple(version for version in RECORDED_VERSIONS if version not in RECORD_ONLY)
RECURRENCES = ("exact", "recorded")


def run_command(version: str, recurrence: str, scale: str, folder: Path, overrides: Sequence[str]) -> list[str]:
    """What trains one of them, from its beginning or from where it was interrupted."""
    command = [sys.executable, "-m", "asnn_goose", "distill", version, f"scale={scale}"]
    command += [f"student.recurrence={recurrence}", "samples=0", *overrides, "--out", str(folder)]
    return [*command, "--resume"] if (folder / "config.yaml").is_file() else command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key.path=value for all of them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--scale", choices=SCALES, default="pocket")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--recurrences", nargs="+", choices=RECURRENCES, default=RECURRENCES)
    options = parser.parse_intermixed_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [(version, recurrence) for version in options.versions for recurrence in options.recurrences]
    failed = []
    for place, (version, recurrence) in enumerate(wanted, start=1):
        folder = options.out / f"{version}-{recurrence}"
        if (folder / "results.json").is_file():
            continue
        print(f"[{place}/{len(wanted)}] {folder.name}", flush=True)
        command = run_command(version, recurrence, options.scale, folder, options.overrides)
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(folder.name)
    print(gaps_table(our_runs(options.out)), end="")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
