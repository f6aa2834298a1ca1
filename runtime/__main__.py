"""`python -m runtime COMMAND`: the commands of the container and of the developer."""

import sys

from runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
