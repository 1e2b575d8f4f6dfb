"""`python -m bigrec_hf STAGE ...`: the command line, without its console script."""

import sys

from bigrec_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
