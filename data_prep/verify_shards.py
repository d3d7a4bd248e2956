"""Compares a data set with its SHA-256 digests: `python data_prep/verify_shards.py --help`."""

import argparse
import secrets
import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the project's root is what imports need.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import require_environment

require_environment("numpy", "PIL", "h5py", "tqdm")

from tqdm import tqdm

from data_prep import contact_sheet
from data_prep.shards import PARTS, UserError, open_data_set, sha256_of_file, shard_entries


def verify(directory: Path) -> int:
    """Reads every file of the data set.

    Returns:
        The number of files.

    Raises:
        UserError: the files that differ, all of them.
    """
    manifest = open_data_set(directory).manifest
    entries = [entry for part in PARTS for entry in shard_entries(manifest, part)]
    entries.append(manifest["statistics"])
    interval = 0.5 if sys.stderr.isatty() else 30
    damaged = [
        entry["file"]
        for entry in tqdm(entries, unit=" files", mininterval=interval)
        if sha256_of_file(directory / entry["file"]) != entry["sha256"]
    ]
    if damaged:
        raise UserError(
            f"{directory}: {len(damaged)} of {len(entries)} files are not those of the manifest: "
            f"{', '.join(damaged)}: remove them and build again; the others are kept"
        )
    return len(entries)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python data_prep/verify_shards.py",
        description="Compares every file of a data set with its SHA-256, or draws some pictures.",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=Path("shards"), help="default: %(default)s"
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE.png",
        help="draw random pictures with their labels, instead of comparing files",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="draw only this class: a wnid or a name",
    )
    parser.add_argument("--seed", type=int, help="of the drawing (default: another each time)")
    arguments = parser.parse_args(argv)
    if arguments.contact_sheet is None:
        for name in ("class_name", "seed"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name.removesuffix('_name')}: expected --contact-sheet beside it")
    try:
        if arguments.contact_sheet is not None:
            seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
            num_pictures = contact_sheet.draw(
                open_data_set(arguments.data),
                arguments.contact_sheet,
                seed=seed,
                class_name=arguments.class_name,
            )
            print(f"{arguments.contact_sheet}: {num_pictures} pictures, seed {seed}")
            return 0
        num_files = verify(arguments.data)
    except UserError as error:
        print(f"verify_shards: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.data}: {num_files} files are as the manifest says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
