"""`python -m bigrec_hf STAGE ...`: the same command line as the `bigrec-hf` script."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
