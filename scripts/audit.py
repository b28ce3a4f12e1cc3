"""Ask for known vulnerabilities of every locked package; say it when nobody could be asked.

python scripts/audit.py [constraints/lock-cpu.txt …]     (needs `pip install pip-audit`)
Exit codes: 0 nothing known, 1 something found, 75 the service is out of reach (nothing is proven).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOUND, UNREACHABLE = 1, 75


def main(locks: list[Path]) -> int:
    """Audit each lock file; return the exit code: what was found outweighs what was not asked."""
    codes = [audit(lock) for lock in locks]
    return FOUND if FOUND in codes else max(codes, default=0)


def audit(lock: Path) -> int:
    """Print what is known about the packages of one lock file."""
    command = ["pip-audit", "--requirement", str(lock), "--disable-pip", "--no-deps"]
    options = ["--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        sys.stdout.write(f"{lock}: NOT AUDITED: pip install pip-audit\n")
        return UNREACHABLE
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        sys.stdout.write(f"{lock}: NOT AUDITED: the service cannot be reached ({reason})\n")
        return UNREACHABLE
    return report(lock, packages)


def report(lock: Path, packages: list[dict[str, Any]]) -> int:
    """Print one line per vulnerability and one for the whole; return the exit code."""
    asked = [package for package in packages if "skip_reason" not in package]
    found = [(package, known) for package in asked for known in package["vulns"]]
    for package, known in found:
        mended = ", ".join(known["fix_versions"]) or "no release yet"
        sys.stdout.write(f"{package['name']} {package['version']}: {known['id']} -> {mended}\n")
    total = f"{len(asked)} of {len(packages)} packages"
    sys.stdout.write(f"{lock}: audited {total}, {len(found)} known vulnerabilities\n")
    if found:
        return FOUND
    if len(asked) < len(packages):
        sys.stdout.write(f"{lock}: NOT AUDITED: the service knew {total}; is it within reach?\n")
        return UNREACHABLE
    return 0


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    sys.exit(main(given or sorted((ROOT / "constraints").glob("lock-*.txt"))))
