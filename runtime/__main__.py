"""`python -m runtime COMMAND`: the same as the console script `lambda-comfyui COMMAND`."""

import sys

from runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
