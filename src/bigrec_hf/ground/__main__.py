"""`accelerate launch ... -m bigrec_hf.ground`: run the stage on several processes, like `bigrec-hf ground` on one."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ground", *sys.argv[1:]]))
