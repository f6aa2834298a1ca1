"""A module that keeps the runtime client in its init for longer than any test waits."""

import time

time.sleep(60)
