"""`accelerate launch ... -m bigrec_hf.generate`: the stage on several processes, the same as `bigrec-hf generate`."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
