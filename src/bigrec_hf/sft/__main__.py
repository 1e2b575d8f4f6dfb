"""`accelerate launch ... -m bigrec_hf.sft`: the stage on several processes, the same as `bigrec-hf sft`."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
