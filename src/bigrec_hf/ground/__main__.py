"""`accelerate launch ... -m bigrec_hf.ground`: the stage on several processes, the same as `bigrec-hf ground`."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ground", *sys.argv[1:]]))
