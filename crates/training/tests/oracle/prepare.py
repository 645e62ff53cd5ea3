"""Makes the Python environment of the oracles under the target folder, once, and prints the path of its interpreter.

    prepare.py [TARGET]     TARGET: the build's target folder; CARGO_TARGET_DIR or ./target if absent

Needs Python 3.11 or newer with `venv`, and a package index the first time (about 20 s). Ends with 1 and a sentence if it
cannot be made.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import venv

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"oracle: Python 3.11 or newer is needed, this is {sys.version.split()[0]} ({sys.executable})")
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CARGO_TARGET_DIR", "target")).absolute()
    home = target / "venv" / "oracle"
    stamp = home / "requirements.txt"
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    # Tests run as processes side by side: one makes it, the others wait.
    with open(home.parent / "oracle.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text() and python.exists()):
            make(home, python)
            stamp.write_text(REQUIREMENTS.read_text())
    print(python)


def make(home: pathlib.Path, python: pathlib.Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    print(f"oracle: installing {REQUIREMENTS} into {home}, once", file=sys.stderr)
    try:
        venv.create(home, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*install, "--requirement", REQUIREMENTS], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(home, ignore_errors=True)
        sys.exit(
            f"oracle: the environment cannot be made: {error}\n"
            "  It needs python3 with venv and, this once, a package index: connect, then run this again:\n"
            f"  python3 {pathlib.Path(__file__)} {home.parent.parent}"
        )


if __name__ == "__main__":
    main()
