"""Run a method:  python run.py METHOD [--flags]

python run.py llm2llm                     the embedded demonstration, minutes on a laptop
python run.py reversegen                  the same for this method
python run.py llm2llm --help              its flags
"""

import errno
import importlib
import sys

from common.cli import fail
from common.errors import UserError
from common.secret import mask_output

METHODS = {  # name: module of its command, and what it does
    "llm2llm": ("llm2llm.command", "learn from a teacher's new examples, written for what the student gets wrong"),
    "reversegen": (
        "reversegen.command",
        "train a proposer to write what a target fails on, and the target on that",
    ),
    "active-inheritance": (
        "active_inheritance.command",
        "select what a student learns from, by what it should become",
    ),
    "profile": (
        "active_inheritance.profile.command",
        "measure what models are like: text, toxicity, bias, calibration, utility",
    ),
}

USAGE = "usage: python run.py METHOD [--flags]\n\nmethods:\n" + "".join(
    f"  {name:20}{what}\n" for name, (_, what) in METHODS.items()
)


def main(argv: list[str]) -> None:
    """Parse the method's flags before anything heavy is imported, then run it."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\n`python run.py METHOD --help` lists the flags of a method.")
        raise SystemExit(0 if argv else 2)
    method, *rest = argv
    if method not in METHODS:
        fail(f"unknown method {method!r}: there is {', '.join(METHODS)}")
    try:
        command = importlib.import_module(METHODS[method][0])
        command.main(rest)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"the disk is full ({error.filename or 'while writing'}): free space and give the same command again")
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it left off", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    mask_output()
    main(sys.argv[1:])
