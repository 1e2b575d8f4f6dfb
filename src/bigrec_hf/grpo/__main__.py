"""`accelerate launch ... -m bigrec_hf.grpo`: run the stage on several processes, like `bigrec-hf sft` on one."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["grpo", *sys.argv[1:]]))
