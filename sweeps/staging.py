"""`python -m sweeps.staging FROM TO`: put a submission's data where all nodes read them.

Ray's own copies live as long as the job; trials are run again and winners scored long after it.
"""

import os
import shutil
import sys
from pathlib import Path


def stage(source: Path, target: Path) -> list[Path]:
    """Copy the files of `source` into `target`, each whole; the files that were not there yet.

    Names say what is in a file (`sweeps.bundle`), so one that is there stays.
    """
    target.mkdir(parents=True, exist_ok=True)
    missing = [file for file in sorted(source.iterdir()) if not (target / file.name).exists()]
    for file in missing:
        aside = target / f".{file.name}.{os.getpid()}"
        shutil.copyfile(file, aside)
        os.replace(aside, target / file.name)
    return [target / file.name for file in missing]


if __name__ == "__main__":
    stage(Path(sys.argv[1]), Path(sys.argv[2]))
